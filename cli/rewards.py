"""``flow-ttrl rewards``: which rewards are ready, what the others lack, fetching them."""

from __future__ import annotations

import argparse

from ..rewards import CATALOGUE
from .options import add_json, add_models, folders


def add_to(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=_rewards)
    command.add_argument("--download", metavar="NAME", help="fetch the files of this reward")
    add_models(command)
    add_json(command)


def _rewards(args) -> tuple[dict, str]:
    places = folders(args)
    if args.download:
        from ..rewards.download import download

        fetched = download(args.download, places[0])
        answer = {"downloaded": [str(path) for path in fetched]}
        return answer, "\n".join(answer["downloaded"]) or f"{args.download}: nothing is missing"
    rows = {
        name: {
            "about": item.about,
            "ready": not item.lacks(places),
            "lacks": item.lacks(places),
            "files": [str(file.find(places) or "") for file in item.files],
            "odd": [told for file in item.files if (told := file.odd(places))],
        }
        for name, item in CATALOGUE.items()
    }
    width = max(map(len, rows))
    lines = [f"in {', '.join(map(str, places))}:"]
    for name, row in rows.items():
        lines.append(f"{name:{width}}  {'ready  ' if row['ready'] else 'missing'}  {row['about']}")
        lines += [f"{'':{width}}           needs {what}" for what in row["lacks"]]
        lines += [f"{'':{width}}           but {what}" for what in row["odd"]]
    return {"folders": [str(folder) for folder in places], "rewards": rows}, "\n".join(lines)
