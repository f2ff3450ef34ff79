"""Puts what peers.py found into docs/benchmarks.md, between two markers, with plots beside it."""

import html
import json
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

_BEGIN, _END = "<!-- peers.sh: begin -->", "<!-- peers.sh: end -->"
_ESKER = ("esker", "esker-grpc", "esker-planes")

Results = dict[str, Any]
Round = dict[str, Any]
Values = list[float]

_LABELS = {
    "esker": "Esker, shared memory",
    "esker-grpc": "Esker, gRPC",
    "esker-planes": "Esker, `planes`",
    "torch.save": "`torch.save` + fsync",
    "safetensors": "safetensors + fsync",
    "dcp": "DCP `FileSystemWriter`",
    "dcp-async": "DCP `async_save`",
    "torchsnapshot": "torchsnapshot `async_take` + fsync",
    "bytecheckpoint": "ByteCheckpoint",
    "orbax": "Orbax / TensorStore + fsync",
}


def write(results: pathlib.Path, document: pathlib.Path) -> None:
    """`results`: a directory of JSON documents, all of which are put in."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    states = [found[name] for name in found if name.startswith("state-")]
    codecs = [found[name] for name in found if name.startswith("codec-")]
    limits = [found[name] for name in found if name.startswith("limit-")]
    plots = document.with_suffix("")
    plots.mkdir(exist_ok=True)
    lines = ["## Esker beside its peers", "", f"    {found['run']['command']}", ""]
    lines += [f"{found['run']['date']}: {found['run']['machine']}. Medians of {found['run']['rounds']} rounds, the range in brackets.", ""]
    for state in states:
        lines += _state(state, plots, document.stem)
    lines += _failures(states, found["run"]["install_errors"])
    lines += _bars(states, limits)
    lines += _limits(limits)
    lines += _codecs(codecs)
    text = document.read_text()
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    document.write_text(f"{before}{_BEGIN}\n" + "\n".join(lines).rstrip() + f"\n{_END}{after}")


def spread(values: Values, digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})" if values else "–"


def _rows(state: Results) -> list[tuple[str, list[Round]]]:
    return [(name, rounds) for name, rounds in state["rounds"].items() if rounds]


def _each(rounds: list[Round], get: Callable[[Round], float | None]) -> Values:
    return [value for one in rounds if (value := get(one)) is not None]


def _state(state: Results, plots: pathlib.Path, folder: str) -> list[str]:
    gb = state["bytes"] / 1e9
    lines = [f"### State: {state['state']}, {state['bytes'] / 1e6:.0f} MB", ""]
    lines += [
        "| | save, GB/s | CPU-s per GB | stall, ms | restore, GB/s, cold | CPU-s per GB | on disk | peak memory, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rounds in _rows(state):
        cells = [
            _LABELS[name],
            spread(_each(rounds, lambda one: gb / one["save_s"])),
            spread(_each(rounds, lambda one: one["save_cpu_s"] / gb)),
            spread(_each(rounds, lambda one: one["stall_s"] and one["stall_s"] * 1e3), 0),
            spread(_each(rounds, lambda one: gb / one["load_s"])),
            spread(_each(rounds, lambda one: one["load_cpu_s"] / gb)),
            f"{statistics.median(one['disk_bytes'] for one in rounds) / state['bytes']:.3f}",
            _memory(rounds),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for key, title in (("save_s", "durable save"), ("load_s", "cold restore")):
        file = plots / f"{state['state']}-{key.removesuffix('_s')}.svg"
        bars = [(_LABELS[name].replace("`", ""), _each(rounds, lambda one: gb / one[key])) for name, rounds in _rows(state)]
        file.write_text(svg(f"{state['state']}: {title}, GB/s", bars))
        lines += [f"![{title}, {state['state']}]({folder}/{file.name})", ""]
    return lines


def _memory(rounds: list[Round]) -> str:
    own, server = max(one["peak_rss_bytes"] for one in rounds), max(one["server_peak_rss_bytes"] for one in rounds)
    return f"{own / 1e9:.2f}" + (f" + server {server / 1e9:.2f}" if server else "")


def _failures(states: list[Results], install_errors: dict[str, str]) -> list[str]:
    errors = {f"`{name}` (installation)": error for name, error in install_errors.items()}
    for state in states:
        for name, error in state["errors"].items():
            errors.setdefault(f"{_LABELS[name]} ({state['state']})", error)
    if not errors:
        return []
    lines = ["### Could not run here", ""]
    return [*lines, *(f"- {name}: `{' '.join(error.split())[:300].replace('`', chr(39))}`" for name, error in errors.items()), ""]


def ratios(state: Results, above: str, below: str, get: Callable[[Round], float | None]) -> Values:
    """Of two contenders, round by round."""
    pairs = zip(state["rounds"].get(above, []), state["rounds"].get(below, []))
    return [a / b for one, other in pairs if (a := get(one)) is not None and (b := get(other)) is not None and b > 0]


def _best(state: Results, get: Callable[[Round], float | None]) -> str | None:
    """The peer with the lowest median."""
    found = {name: _each(rounds, get) for name, rounds in _rows(state) if name not in _ESKER}
    medians = {name: statistics.median(values) for name, values in found.items() if values}
    return min(medians, key=lambda name: medians[name]) if medians else None


def _bars(states: list[Results], limits: list[Results]) -> list[str]:
    lines = ["### What was wanted", "", "| | wanted | found | of |", "|---|---|---|---|"]
    for limit in limits:
        for key, wanted in {
            "stall_over_memcpy": "≤ 1.15",
            "first_stall_over_memcpy": "≤ 1.5",
            "cpu_s_per_gb_beyond_copy": "≤ 0.25",
            "tcp_ratio": "≥ 0.70",
        }.items():
            belongs = {"stall": key.endswith("memcpy"), "save": not key.endswith("memcpy")}.get(limit["command"], False)
            if belongs and limit.get(key) is not None:
                of = limit["spread"][key]
                found = f"{of['median']:.2f} ({of['min']:.2f}–{of['max']:.2f})"
                lines.append(f"| `{key}` | {wanted} | {found} | `esker bench`: {limit['title']} |")
    questions: list[tuple[str, str, Callable[[Round], float | None], bool]] = [
        ("durable save, times as fast as the fastest peer", "≥ 1.5", lambda one: one["save_s"], True),
        ("stall, against the shortest of an async peer", "≤ 0.5", lambda one: one["stall_s"], False),
        ("cold restore, times as fast as the fastest peer", "≥ 1.2", lambda one: one["load_s"], True),
    ]
    for state in states:
        for title, wanted, get, faster in questions:
            if (best := _best(state, get)) is None:
                continue
            times = ratios(state, best, "esker", get) if faster else ratios(state, "esker", best, get)
            lines.append(f"| {title} | {wanted} | {spread(times)} | {state['state']}, {_LABELS[best]} |")
            if title.startswith("durable"):
                cpu = ratios(state, "esker", best, lambda one: one["save_cpu_s"])
                lines.append(f"| its CPU, against that peer's | ≤ 0.33 | {spread(cpu)} | {state['state']}, {_LABELS[best]} |")
    return [*lines, ""]


def _limits(limits: list[Results]) -> list[str]:
    lines = ["### Against the machine's own limits (`esker bench`)", "", "| | figure | median | range |", "|---|---|---|---|"]
    for limit in limits:
        for key, of in limit["spread"].items():
            lines.append(f"| {limit['title']} | `{key}` | {of['median']:.3f} | {of['min']:.3f}–{of['max']:.3f} |")
        peak, shared = limit["server_peak_rss_bytes"] / 1e6, limit["bytes_raw"] / 1e6
        lines.append(f"| {limit['title']} | `server_peak_rss_bytes` | {peak:.0f} MB | with the clients' {shared:.0f} MB that it maps |")
    return [*lines, ""]


def _codecs(codecs: list[Results]) -> list[str]:
    if not codecs:
        return []
    lines = ["### ZipNN: a codec only", "", "One thread, by processor time.", ""]
    lines += ["| state | codec | dtype | size | encode, GB/s | decode, GB/s |", "|---|---|---|---|---|---|"]
    for codec in codecs:
        if "error" in codec:
            lines.append(f"| {codec['state']} | ZipNN | `{codec['error'][:200]}` | | | |")
            continue
        for dtype, row in codec["zipnn"].items():
            figures = f"{row['size_ratio']:.4f} | {row['encode_gbps']:.2f} | {row['decode_gbps']:.2f}"
            lines.append(f"| {codec['state']} | ZipNN | {dtype} | {figures} |")
        for row in codec["esker"]:
            if row["codec"] == "planes":
                lines.append(
                    f"| {codec['state']} | `planes`, {row['tensor_set']} | {row['dtype']} | {row['size_ratio']:.4f} "
                    f"| {row['encode_gbps_per_core']:.2f} | {row['decode_gbps_per_core']:.2f} |"
                )
    return [*lines, ""]


def svg(title: str, bars: list[tuple[str, Values]]) -> str:
    """Medians as bars, ranges as lines over them. Esker's are blue."""
    row, left, width = 26, 250, 380
    largest = max((max(values) for _, values in bars if values), default=1.0)
    height = row * len(bars) + 44
    size = f'width="{left + width + 70}" height="{height}"'
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">']
    out += ['<rect width="100%" height="100%" fill="white"/>', f'<text x="8" y="20" font-weight="bold">{html.escape(title)}</text>']
    for number, (label, values) in enumerate(bars):
        if not values:
            continue
        y = 34 + row * number
        middle, low, high = (width * value / largest for value in (statistics.median(values), min(values), max(values)))
        color = "#2a6fdb" if label.startswith("Esker") else "#9aa4b2"
        out += [
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{html.escape(label)}</text>',
            f'<rect x="{left}" y="{y}" width="{middle:.1f}" height="18" fill="{color}"/>',
            f'<line x1="{left + low:.1f}" x2="{left + high:.1f}" y1="{y + 9}" y2="{y + 9}" stroke="black"/>',
            f'<text x="{left + max(middle, high) + 6:.1f}" y="{y + 14}">{statistics.median(values):.2f}</text>',
        ]
    return "\n".join([*out, "</svg>", ""])
