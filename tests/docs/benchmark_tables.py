"""The speed tables of README.md and BENCHMARKS.md, and the chart, made from the raw results in docs/results.

`python tests/docs/benchmark_tables.py` writes all of them. A result is what `python -m jaxbp bench ... --json FILE`
wrote. PyTorch's columns appear where `--torch` was given.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from jaxbp._bench._measure import geometric_mean
from jaxbp._bench._programs import WHOLE
from jaxbp._bench._table import SLOWER

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
DOCUMENTS = ("README.md", "BENCHMARKS.md")
BLOCK = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
# The results in README's table.
SUMMARY = ("cpu-suite", "cpu-models", "cpu-loops", "cpu-populations")
# Families of `bench --loops` and `--populations`, in README's words.
FAMILIES = {
    "scan": "4 training steps of small networks in one `lax.scan`",
    "vmap(step)": "a step of 4 or 16 small networks under `vmap`",
    "vmap(scan)": "4 training steps of 4 or 16 small networks, a `lax.scan` under `vmap`",
}
OTHERS = {"automatic": "automatic / jaxbp", "torch": "PyTorch / jaxbp"}


def load(name: str) -> dict[str, Any]:
    """One file of raw results."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def speedup(case: dict[str, Any], other: str) -> float | None:
    """The other's time over jaxbp's, forward and all gradients; None where it was not measured."""
    return case["parts"][WHOLE].get(f"{other}_over_manual", {}).get("median")


def measured(cases: list[dict[str, Any]]) -> list[str]:
    """What jaxbp was compared with: the automatic rule, and PyTorch where it was timed."""
    return [other for other in OTHERS if any(speedup(case, other) is not None for case in cases)]


def mean(cases: list[dict[str, Any]], other: str) -> str:
    """The geometric mean of the known ratios."""
    known = [ratio for case in cases if (ratio := speedup(case, other)) is not None]
    return digits(geometric_mean(known)) if known else "-"


def least(cases: list[dict[str, Any]], other: str) -> str:
    """The smallest of the known ratios."""
    return digits(min((ratio for case in cases if (ratio := speedup(case, other)) is not None), default=None))


def digits(value: float | None) -> str:
    """Two digits, or three where a ratio is near 1; never an exponent."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 1.95 else f"{value:.2f}"


def families(cases: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Cases by family, the largest gain first."""
    found = {name: [c for c in cases if c["family"] == name] for name in dict.fromkeys(c["family"] for c in cases)}
    return dict(sorted(found.items(), key=lambda item: -geometric_mean([speedup(c, "automatic") for c in item[1]])))


def is_layers(record: dict[str, Any]) -> bool:
    """Whether these are single layers, which are shown by family; whole programs are shown one by one."""
    return len({case["family"] for case in record["cases"]}) > 1


def markdown(rows: list[list[str]]) -> str:
    """A table with its first row as the head."""
    head, *body = rows
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def origin(*records: dict[str, Any]) -> str:
    """The commands, the host and the date; said once where they are the same."""
    by_place: dict[str, list[str]] = {}
    for record in records:
        place = f"{record['date']}: {record['machine'].replace(' | ', ', ')}."
        by_place.setdefault(place, []).append(f"`{re.sub(r' --json [^ ]+', '', record['command'])}`")
    return " ".join(f"{', '.join(commands)}, {place}" for place, commands in by_place.items())


def layer_table(record: dict[str, Any]) -> str:
    """A row for each family, and what is slower than the automatic rule or takes too long to compile."""
    cases, others = record["cases"], measured(record["cases"])
    rows = [["family", "layers", *(head for other in others for head in (OTHERS[other], "least"))]]
    for name, members in [*families(cases).items(), ("all", cases)]:
        columns = [text for other in others for text in (mean(members, other), least(members, other))]
        rows.append([name, str(len(members)), *columns])
    listed = ", ".join(slower(case) for case in cases if round(speedup(case, "automatic") or 1, 3) < SLOWER) or "none"
    return f"{markdown(rows)}\n\nBelow {SLOWER} of the automatic rule's speed: {listed}. {compile_time(cases)}"


def slower(case: dict[str, Any]) -> str:
    """A case that is slower than the automatic rule. Three digits: with two, 0.948 would read as the limit itself."""
    ratios = case["parts"][WHOLE]["automatic_over_manual"]
    return f"{case['name']} ({ratios['median']:.3f}; fastest samples {ratios['best']:.3f})"


def program_table(record: dict[str, Any]) -> str:
    """A row for each whole program."""
    cases, others = record["cases"], measured(record["cases"])
    rows = [
        ["program", "jaxbp ms", *(OTHERS[o] for o in others), "temporary MiB", "automatic", "s to compile", "automatic"]
    ]
    for case in cases:
        milliseconds = case["parts"][WHOLE]["manual"]["best_seconds"] * 1e3
        memory = [f"{case['temporary_bytes'][rule] / 2**20:.0f}" for rule in ("manual", "automatic")]
        seconds = [f"{case['compile_seconds'][rule]:.2f}" for rule in ("manual", "automatic")]
        ratios = [digits(speedup(case, other)) for other in others]
        rows.append([case["name"], digits(milliseconds), *ratios, *memory, *seconds])
    rows.append(["geometric mean", "", *(mean(cases, other) for other in others), "", "", "", ""])
    return f"{markdown(rows)}\n\n{compile_time(cases)}"


def device_table(record: dict[str, Any]) -> str:
    """A row for each layout: what a device is sent in one step of all programs."""
    rows = [
        ["layout", "steps", "automatic: MiB sent", "collectives", "jaxbp: MiB sent", "collectives", "largest ratio"]
    ]
    for layout in dict.fromkeys(case["layout"] for case in record["cases"]):
        pairs = [(c["automatic"], c["manual"]) for c in record["cases"] if c["layout"] == layout and c["automatic"]]
        sums = [str(len(pairs))]
        for rule in zip(*pairs, strict=True):
            sums += [f"{sum(one['bytes'] for one in rule) / 2**20:.1f}", str(sum(one["collectives"] for one in rule))]
        ratio = max(manual["bytes"] / automatic["bytes"] for automatic, manual in pairs)
        rows.append([layout, *sums, f"{ratio:.2f}"])
    return markdown(rows)


def compile_time(cases: list[dict[str, Any]]) -> str:
    """How much longer compiling takes."""
    pairs = [(c["compile_seconds"]["manual"], c["compile_seconds"]["automatic"]) for c in cases]
    ratios = [manual / automatic for manual, automatic in pairs if manual and automatic]
    return (
        f"Compiling takes {digits(geometric_mean(ratios))} times as long as the automatic rule's program in the "
        f"geometric mean, {digits(max(ratios))} times at most."
    )


def summary() -> str:
    """README's table: a row for all single layers, for each model, and for small networks by transformation."""
    records = [load(name) for name in SUMMARY]
    layers, models, *networks = records
    others = measured(layers["cases"])
    rows = [["", *(OTHERS[other] for other in others)]]
    rows.append([f"{len(layers['cases'])} single layers", *(mean(layers["cases"], other) for other in others)])
    rows += [[f"step of {c['name']}", *(digits(speedup(c, other)) for other in others)] for c in models["cases"]]
    timed = [case for record in networks for case in record["cases"]]
    for family, what in FAMILIES.items():
        if ratios := [case["ratios"]["automatic"] for case in timed if case["family"] == family]:
            rows.append(
                [f"{what} ({len(ratios)} programs)", digits(geometric_mean(ratios)), *["-"] * (len(others) - 1)]
            )
    return f"{markdown(rows)}\n\n{origin(*records)}"


def block(name: str) -> str:
    """What belongs between the two comments of a block."""
    if name == "summary":
        return summary()
    record = load(name)
    table = device_table if "devices" in record else layer_table if is_layers(record) else program_table
    return f"{origin(record)}\n\n{table(record)}"


def filled(text: str) -> str:
    """A document with all its blocks made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{block(found[2])}\n\n{found[3]}", text)


def draw(name: str, file: Path) -> None:
    """The chart: a bar for each family, and a diamond for PyTorch where it was timed."""
    import matplotlib
    from matplotlib.figure import Figure

    record = load(name)
    found = families(record["cases"])
    others = measured(record["cases"])
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "jaxbp", "font.size": 10}):
        figure = Figure(figsize=(8, 0.6 + 0.32 * len(found)), layout="constrained")
        axes = figure.add_subplot()
        for y, members in enumerate(found.values()):
            value = geometric_mean([speedup(case, "automatic") for case in members])
            axes.barh(y, value - 1, left=1, color="#4c72b0" if value >= 1 else "#c44e52")
            end = max(value, 1)
            if "torch" in others and (text := mean(members, "torch")) != "-":
                axes.plot(float(text), y, "D", color="#222222", markeredgecolor="white")
                end = max(end, float(text) * 1.05)
            axes.text(end * 1.05, y, mean(members, "automatic"), va="center")
        axes.set_xscale("log")
        axes.set_xlim(0.5, 200)
        axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50, 100], ["0.5", "1", "2", "5", "10", "20", "50", "100"])
        axes.minorticks_off()
        axes.set_yticks(range(len(found)), list(found))
        axes.invert_yaxis()
        diamond = "; diamonds: PyTorch's time / jaxbp's" if "torch" in others else ""
        axes.set_xlabel(f"automatic rule's time / jaxbp's, forward and all gradients{diamond}")
        axes.set_title(f"{record['machine']}, {record['date']}", fontsize=9)
        figure.savefig(file, format="svg", metadata={"Date": None})


def main() -> None:
    """Write the tables into the documents, and the charts beside the results."""
    argparse.ArgumentParser(description=__doc__.split("\n\n")[1]).parse_args()
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(filled(path.read_text()))
    for file in RESULTS.glob("*-suite.json"):
        draw(file.stem, file.with_suffix(".svg"))


if __name__ == "__main__":
    main()
