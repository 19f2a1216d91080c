"""The command that serves a model as a web app."""

from __future__ import annotations

from flows.cli import console, supervisor
from flows.cli.arguments import AnyFile, AsJson, Device, Overrides, RegistryConfig, Whole, registry_config

PORT = 8501


def serve(
    model: AnyFile,
    /,
    *,
    host: str = "127.0.0.1",
    port: Whole = PORT,
    token: str | None = None,
    device: Device = "auto",
    config: RegistryConfig = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Serve a model: a page to play with it, and its pictures by URL, until Ctrl-C.

    An alias such as faces@champion is followed: a promotion or rollback is served within half a minute, and no request is
    dropped.

    Parameters
    ----------
    model
        A run id, the URI of a checkpoint, or models:/name@alias (or models:/name/version).
    host
        Name or address to listen on. Any but this machine itself needs a token; 0.0.0.0 is every interface.
    port
        Port to listen on; 0 takes any that is free.
    token
        What whoever asks must know. STYLEGAN_SERVE_TOKEN does the same, and other users of this machine do not see it.
    as_json
        Print one JSON line when the server is ready.

    Examples
    --------
    stylegan serve quickstart@champion --config configs/quickstart.yaml
    stylegan serve faces@champion --config faces.yaml --host 0.0.0.0 --port 80
    """
    settings = registry_config(config, overrides)
    from stylegan.retry import storage_settings
    from stylegan.verbs import serve as serving

    def ready(record: serving.Serving) -> None:
        version = f"version {record.version}" + (f", follows {record.alias}" if record.alias else "")
        console.print_result(
            record, f"{record.name} ({version}) on {record.device}: {record.url}  (Ctrl-C ends it)", as_json
        )

    supervisor.say_when_stopped("serving ends; requests under way are answered, and a second signal ends at once")
    with storage_settings(settings.storage if settings else None):
        serving.serve(settings, model, host=host, port=port, token=token, device=device, ready=ready)
