"""Make .venv and install the project into it: `python3 infra/install.py .venv`, or `make setup`.

uv installs in a fraction of pip's time. It reads no configuration of pip, so it is given the same indexes here, and pip
installs where that cannot be done or uv fails. So on every machine the same packages come from the same place.

This file runs under any Python 3, to say which one is needed.
"""

import ast
import os
import re
import shutil
import subprocess
import sys

OLDEST = (3, 11)
NEEDED_GB = 2.5  # the packages, and what is unpacked on the way
PINS, REFERENCE = "constraints.txt", os.path.join("tests", "reference.txt")
UNFINISHED = ".unfinished"  # in .venv while it is filled
# Settings of pip that do not say where packages come from, or that uv takes from the environment as pip does.
HARMLESS = """
    disable-pip-version-check default-timeout timeout retries quiet verbose no-color progress-bar no-input log
    root-user-action require-virtualenv no-python-version-warning no-compile no-warn-script-location
"""


def main():
    """Install, or end with one line that says why not and what to do."""
    venv = sys.argv[1]
    if sys.version_info < OLDEST:
        wrong_python()
    make_venv(venv)
    python = os.path.join(venv, "bin", "python")
    log = os.path.join(venv, "install.log")
    print(f"Installing into {venv} (about 2 GB, once; details in {log})", flush=True)
    with open(os.path.join(venv, UNFINISHED), "w"), open(log, "w") as output:
        uv = uv_command(python, output)
        done = uv is not None and install(uv, output) is None
        if uv is not None and not done:
            print(f"uv cannot install here (see {log}); pip does it, which takes longer", flush=True)
        if not done:
            failed = install([python, "-m", "pip", "install", "--disable-pip-version-check"], output)
            if failed is not None:
                give_up(failed, venv, log)
    os.remove(os.path.join(venv, UNFINISHED))


def wrong_python():
    """End with the command that takes a newer Python, if there is one."""
    names = [f"python3.{minor}" for minor in range(14, OLDEST[1] - 1, -1)]
    newer = next((path for path in map(shutil.which, names) if path and works(path)), None)
    found = "{} is Python {}.{}".format(sys.executable, *sys.version_info[:2])
    cure = f"add PYTHON={newer} to the command" if newer else "install one and add PYTHON=/path/to/it to the command"
    stop("Python {}.{} or newer is needed, and {}; {}".format(*OLDEST, found, cure))


def works(python):
    """Return whether a Python starts: pyenv has a command for versions that are not switched on."""
    return subprocess.call([python, "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


def make_venv(venv):
    """Make the environment, anew if an earlier set-up was cut off."""
    python = os.path.join(venv, "bin", "python")
    if os.path.exists(python) and not os.path.exists(os.path.join(venv, UNFINISHED)) and has_pip(python):
        return
    for folder in (os.getcwd(), venv):
        if os.path.exists(folder) and not os.access(folder, os.W_OK | os.X_OK):
            stop(f"{os.path.abspath(folder)}: no permission to write; clone the project into a folder of your own")
    made = run([sys.executable, "-m", "venv", "--clear", venv])
    if made.returncode:
        if "ensurepip" in made.stdout:
            version = "{}.{}".format(*sys.version_info[:2])
            cure = (
                f"install it (on Debian and Ubuntu: apt install python{version}-venv), or add PYTHON=/path/to/another"
            )
            stop(f"{sys.executable} has no working module venv (its ensurepip is missing or fails); {cure}")
        give_up(made.stdout, venv, None)


def has_pip(python):
    """Return whether the environment's pip works."""
    return run([python, "-m", "pip", "--version"]).returncode == 0


def uv_command(python, output):
    """Install uv and return its command with pip's own indexes; None if pip has to do it."""
    given = pip_settings(python)
    options = uv_options(given)
    if options is None:
        output.write(f"pip: its configuration has settings that uv does not know: {sorted(given)}\n")
        return None
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", PINS]
    made = run([*pip, "--retries", "1", "--only-binary", ":all:", "uv"])  # pip itself is patient afterwards
    output.write(made.stdout)
    uv = os.path.join(os.path.dirname(python), "uv")
    if made.returncode or not works_as(uv):
        return None
    # Compiled now: where PYTHONDONTWRITEBYTECODE is set, as in many containers, every process would compile anew, for ever.
    return [uv, "pip", "install", "--compile-bytecode", "--python", python, *options]


def works_as(uv):
    """Return whether uv starts on this machine."""
    try:
        return run([uv, "--version"]).returncode == 0
    except OSError:
        return False


def pip_settings(python):
    """Return pip's settings for `install`, from its files and the environment, as it would use them."""
    found = {}
    lines = run([python, "-m", "pip", "config", "list"]).stdout.splitlines()
    for section in ("global", "install", ":env:"):  # a later one counts more
        for line in lines:
            match = re.match(r"(:env:|[^.]+)\.([^=]+)=(.*)$", line)
            if match and match.group(1) == section:
                found[match.group(2)] = ast.literal_eval(match.group(3))
    return found


def uv_options(settings):
    """Return uv's options for the same packages, None if one of pip's settings has no equal."""
    # As pip: the best of all indexes, not of the first that has any, and the certificates of this machine.
    options = ["--index-strategy", "unsafe-best-match", "--system-certs"]
    names = {"index-url": "--default-index", "extra-index-url": "--index", "find-links": "--find-links"}
    names["constraint"] = "--constraint"
    for name, value in settings.items():
        if name in names:
            for one in value.split():
                options += [names[name], one]
        elif name == "no-index" and value.lower() in ("1", "true", "yes", "on"):
            options.append("--no-index")
        elif name == "cert":
            os.environ.setdefault("SSL_CERT_FILE", value)
        elif name == "proxy":
            os.environ.update(HTTP_PROXY=value, HTTPS_PROXY=value)
        elif name not in HARMLESS.split():
            return None
    return options


def install(command, output):
    """Install the project, then what tests compare with; return the messages of what failed, None if all went well."""
    everything = [*command, "--constraint", PINS, "--editable", ".[dev]"]
    # torchvision's dependencies would bring another build of torch.
    for arguments in (everything, [*command, "--no-deps", "--requirement", REFERENCE]):
        done = run(arguments)
        output.write(without_logins("$ {}\n{}\n".format(" ".join(arguments), done.stdout)))
        output.flush()
        if done.returncode:
            return done.stdout
    return None


def give_up(messages, venv, log):
    """End with the reason that pip gave, and what to do about it."""
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    errors = [line for line in lines if line.upper().startswith("ERROR")] or lines[-1:] or ["no reason given"]
    reason = re.sub(r"^error:\s*", "", errors[0], flags=re.IGNORECASE)[:300]
    if re.search(r"No space left|Disk quota", messages):
        places = {path: shutil.disk_usage(path).free / 1e9 for path in (os.getcwd(), os.environ.get("TMPDIR", "/tmp"))}
        free = ", ".join(f"{path} has {size:.1f} GB free" for path, size in places.items())
        cure = f"{NEEDED_GB:g} GB are needed ({free}; TMPDIR moves the second)"
    elif re.search(
        r"NewConnectionError|ConnectTimeout|ProxyError|NameResolution|Connection (refused|reset)|Retrying", messages
    ):
        reason = "the package index cannot be reached"
        proxy = next((name for name in ("https_proxy", "HTTPS_PROXY", "http_proxy") if os.environ.get(name)), None)
        cure = "check the network" + (f" and {proxy}={os.environ[proxy]}" if proxy else ", or set https_proxy")
    else:
        cure = "mend that"
    stop("{}; {}, then repeat the command{}".format(reason, cure, f" (details in {log})" if log else ""))


def run(arguments):
    """Run a command and return it with its output and errors as text."""
    return subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def without_logins(text):
    """Return a text without the logins of its URLs."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def stop(line):
    """End with one line."""
    print("set-up: " + without_logins(line), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
