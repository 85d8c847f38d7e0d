"""Write RESULTS.md, and a plot if matplotlib is there, from the file that ``versus_jax.py --json`` made.

python benchmarks/versus_jax.py --json results.json
python benchmarks/versus_jax_results.py results.json
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TEXT, PLOT = HERE / "RESULTS.md", HERE / "versus_jax.svg"

GOALS = {
    "pointwise": (0.5, 0.5),
    "transcendental": (0.5, 0.3),
    "tanh RNN, 64": (0.7, 0.4),
    "GRU, 64": (0.7, 0.4),
    "LSTM, 64": (0.7, 0.4),
    "tanh RNN, 256": (0.8, 0.6),
    "GRU, 256": (0.8, 0.6),
    "LSTM, 256": (0.8, 0.6),
    "diagonal SSM": (0.35, 0.2),
    "selective SSM": (0.35, 0.2),
    "linear attention": (0.35, 0.2),
    "Runge-Kutta": (0.35, 0.2),
    "adaptive ODE": (0.6, 0.6),
    "HMC": (0.6, 0.6),
    "Kalman": (0.6, 0.6),
}
"""Of the ratio, forward and with gradient; 1.0 for all others."""

REMARKS = {
    "pointwise": "Bound by memory: a row is read and one is written for each step; the stack that is summed after the "
    "loop is read again.",
    "transcendental": "Bound by the vector units: a step of 16 lanes is 83 instructions of 64 bytes, 3 of them "
    "divisions, and takes 50 cycles of the time stamp counter (2.6 GHz). The same three functions by hand, four "
    "vectors interleaved, take 47; reciprocals with a step of Newton's in the place of divisions, 51. With AVX2 "
    "(Zen 3) a step of 8 lanes is some hundred instructions; four vectors at a time take 0.72 of the time of one "
    "after the other.",
    "tanh RNN": "Bound by multiplications, as the LSTM.",
    "GRU, 16": "JAX's best time with gradient is below that of its forward pass, in rounds that no other bears out: by "
    "the medians the ratio is 0.15.",
    "GRU": "Bound by multiplications, as the LSTM.",
    "LSTM": "Bound by multiplications: with 256 units and gradient, 86 of 100 samples are in the products of the "
    "loops, 12 in what is done element by element, 2 in copies of weights. One core of this machine does 59 of 10^9 "
    "multiplications each second, our products reach 53 to 57, MKL's, among them the gradients of weights, some 42. "
    "Those of 8 to 64 rows reach 36 to 49 with AVX2 (Zen 3).",
    "selective SSM": "With gradient: that of the matrix which all lanes share is a sum over lanes, for which the loop "
    "backwards is a function of all lanes.",
    "Newton": "A call of ten microseconds, of which half is the kernel; JAX's call is as short.",
    "linear attention": "The sum over a dimension of the state makes its body a function of all lanes.",
    "Runge-Kutta": "Bound by the latency of sines that follow one another; there are four vectors to fill it.",
    "adaptive ODE": "Bound by latency: vectors of 16 variables, one operation after the other.",
    "power iteration": "Bound by the second level of the cache, from which each step reads the matrix, 64 KiB.",
}
"""Where the time goes, in programs that miss their goal."""


def goal(row: dict[str, Any]) -> float:
    found = [goals for name, goals in GOALS.items() if row["program"].startswith(name)]
    return found[0][row["form"] == "gradient"] if found else 1.0


def mean(rows: list[dict[str, Any]]) -> float:
    return math.exp(sum(math.log(row["ratio"]) for row in rows) / len(rows))


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| loop | ms | JAX, ms | ratio | median ratio | goal | first call, s | JAX, s | kernel |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        ratio = f"{row['ratio']:.2f}"
        ratio = f"**{ratio}**" if row["ratio"] > goal(row) else ratio
        kinds = ", ".join(dict.fromkeys(re.findall(r"(?:^|; )(lanes|steps|tape|native)\b", row["lowering"])))
        times = f"{row['ms']:.3f} | {row['jax_ms']:.3f} | {ratio} | {row['median_ratio']:.2f} | {goal(row):.2f}"
        firsts = f"{row['first_call']:.1f} | {row['jax_first_call']:.1f}"
        lines.append(f"| {row['program']} | {times} | {firsts} | {kinds} |")
    return lines


def text(data: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    lines = [
        "# Compiled loops against JAX",
        "",
        "Written by `versus_jax_results.py` from what `versus_jax.py --json` measured: one thread, both libraries in",
        "one process and in turns, CPU time, the best of many; each program was first checked against JAX",
        "in double precision. A ratio above 1 is for JAX; in bold, one above its goal. The first call captures and",
        "compiles, in CPU time too, without what a process imports once; less than 0.2 s where the kernel was found on",
        "disk, made by an earlier process. Programs without a row were not measured; a row stays until its program is",
        "measured again, and the date is that of the latest rows.",
        "",
        f"{data['machine']}; {versions}; {data['date']}.",
        "",
        f"![The ratios of all programs]({PLOT.name})",
    ]
    missed: dict[str, None] = {}
    for form, title in (("value", "Forward"), ("gradient", "Value and gradient")):
        rows = [row for row in data["rows"] if row["form"] == form]
        if rows:
            lines += [
                "",
                f"## {title}",
                "",
                f"Geometric mean of {len(rows)} ratios: {mean(rows):.2f}.",
                "",
                *table(rows),
            ]
            missed |= dict.fromkeys(row["program"] for row in rows if row["ratio"] > goal(row))
    remarks = {name: said for name, said in REMARKS.items() if any(program.startswith(name) for program in missed)}
    if remarks:
        lines += [
            "",
            "## Where the time goes",
            "",
            "Instructions of the transcendental loop were counted, and samples of the LSTM taken (`perf`, by the",
            "clock: the machine is virtual and has no counters); the others are estimates, from the times above and",
            "a count of the main operations.",
            "",
            *(f"- **{name}.** {said}" for name, said in remarks.items()),
        ]
    return "\n".join(lines) + "\n"


def plot(data: dict[str, Any]) -> None:
    try:
        from matplotlib import pyplot
    except ImportError:
        return
    figure, axes = pyplot.subplots(figsize=(7, 9))
    names = list(dict.fromkeys(row["program"] for row in data["rows"]))
    for form, marker in (("value", "o"), ("gradient", "x")):
        rows = [row for row in data["rows"] if row["form"] == form]
        axes.plot([row["ratio"] for row in rows], [names.index(row["program"]) for row in rows], marker, label=form)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="grey")
    axes.set_xlabel("time by JAX's time")
    axes.legend()
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": PLOT.stem}):
        figure.savefig(PLOT, bbox_inches="tight", metadata={"Date": None})


def main() -> None:
    data = json.loads(Path(sys.argv[1]).read_text())
    TEXT.write_text(text(data))
    plot(data)


if __name__ == "__main__":
    main()
