"""``flow-ttrl rewards``: which rewards are ready, what the others lack, fetching them."""

from __future__ import annotations

import argparse

from ..rewards import CATALOGUE
from ..rewards.recommend import recommend
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

        fetched = download(args.download, places[0], others=places[1:])
        answer = {"downloaded": [str(path) for path in fetched]}
        return answer, "\n".join(answer["downloaded"]) or f"{args.download}: nothing is missing"
    rows = {
        name: {
            "about": item.about,
            "ready": not item.lacks(places),
            "lacks": item.lacks(places),
            "files": [str(file.find(places) or "") for file in item.files],
            "odd": [
                told
                for file in item.files
                if (found := file.find(places)) and (told := file.doubt(found))
            ],
        }
        for name, item in CATALOGUE.items()
    }
    width = max(map(len, rows))
    lines = [f"in {', '.join(map(str, places))}:"]
    for name, row in rows.items():
        lines.append(f"{name:{width}}  {'ready  ' if row['ready'] else 'missing'}  {row['about']}")
        lines += [f"{'':{width}}           needs {what}" for what in row["lacks"]]
        lines += [f"{'':{width}}           but {what}" for what in row["odd"]]
    first = recommend(places)
    lines += ["", f"to begin with: {first.reward or 'none'} ({first.why})", f"    {first.command}"]
    answer = {"folders": [str(folder) for folder in places], "rewards": rows}
    return answer | {"recommended": first.report()}, "\n".join(lines)
