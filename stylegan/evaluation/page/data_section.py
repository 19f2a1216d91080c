"""The section "Data set" of the page: a card in words, with bars for the counts and the mean image inside the page."""

from __future__ import annotations

from typing import Any

from stylegan.data.dataset_card import DatasetCard, Spread

MOST = 60  # classes or attributes that are listed: of more, the most frequent and the rarest


def describe_data(card: DatasetCard) -> dict[str, Any]:
    """What the template shows: `facts` by name, `mean` (URI and words), `heading` and `counts` (name, number, share, percent of the
    longest bar), `left_out` (how many rows are missing between them), `rejected` (kind, number, paths)."""
    counts = _counts(card)
    return {
        "facts": _facts(card),
        "mean": {
            "uri": f"data:image/png;base64,{card.mean_png}",
            "alt": f"Mean of {card.mean_of:,} images",
        },
        "heading": {"classes": "Images by class", "attributes": "Images by attribute", None: ""}[card.counted],
        "column": {"classes": "Class", "attributes": "Attribute", None: ""}[card.counted],
        "counts": counts,
        "left_out": len(card.counts) - len(counts),
        "rejected": [
            (kind, f"{number:,}", ", ".join(card.examples.get(kind, ()))) for kind, number in card.rejected.items()
        ],
    }


def _facts(card: DatasetCard) -> dict[str, str]:
    crops = {
        "center": "central square",
        "wide": "central 4:3 part between black bars",
        "celeba": "face of aligned CelebA, 128x128",
    }
    enlarged = (
        f"; {card.num_upscaled:,} ({card.num_upscaled / card.num_images:.1%}) were enlarged"
        if card.num_upscaled
        else ""
    )
    return {
        "Source": card.source,
        "Fingerprint": card.fingerprint,
        "Images": f"{card.num_images:,} at {card.resolution}x{card.resolution}, {'grey' if card.channels == 1 else 'RGB'}",
        "Labels": f"{len(card.counts):,} {card.counted}" if card.counted else "none",
        "Originals": f"width {_spread(card.widths)}, height {_spread(card.heights)} pixels{enlarged}",
        "Crop": f"{crops.get(card.crop, card.crop)}, resized with the {card.resize_filter} filter",
        "Left out": f"{sum(card.rejected.values()):,}, of which {card.num_duplicates:,} have the bytes of another",
        "Stored": f"{card.num_bytes / 1e6:,.1f} MB in all resolutions",
    }


def _spread(spread: Spread) -> str:
    if spread.min == spread.max:
        return f"{spread.min:,}"
    return f"{spread.min:,} to {spread.max:,} (median {spread.median:,g})"


def _counts(card: DatasetCard) -> list[tuple[str, str, str, float]]:
    """Most frequent first; of many the rarest are kept too, for those are what a network learns badly."""
    ordered = sorted(card.counts.items(), key=lambda item: -item[1])
    if len(ordered) > MOST:
        ordered = ordered[: MOST // 2] + ordered[-MOST // 2 :]
    longest = max((number for _, number in ordered), default=0) or 1
    return [
        (name, f"{number:,}", f"{number / card.num_images:.1%}", 100 * number / longest) for name, number in ordered
    ]
