#!/usr/bin/env python3
"""Checks what compilers and clang-tidy don't: lengths of files and functions, marks of unfinished work, one title per
document, no paths of a developer's machine, and that docs/operations.md names every flag. Standard library only.

Usage: tidy_test.py REPOSITORY [BIN_DIR]     with BIN_DIR the flags of its eskerd and esker are checked too
"""

import pathlib
import re
import subprocess
import sys

MAX_FILE_LINES = 800
MAX_FUNCTION_LINES = 70
# Functions that are one idea and longer all the same: "path:name" -> why.
LENGTH_WAIVERS = {}

problems = []


def sources(root, *patterns):
    listed = subprocess.run(
        ["git", "-C", root, "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        check=True, capture_output=True, text=True,
    ).stdout.split("\n")
    return [root / name for name in listed if name and (root / name).exists()]


def check_functions(path, relative, lines):
    """Finds functions in formatted code: a line that ends in `{` and is no type or namespace, to the `}` of its indent."""
    start = None
    for number, line in enumerate(lines, 1):
        indent = len(line) - len(line.lstrip())
        if start is None:
            opens = re.search(r"\)[^;=]*\{$", line) or re.search(r"^\s*(?:->|const|override|:).*\{$", line)
            if opens and indent <= 6 and not re.match(r"\s*(?:namespace|class|struct|enum|union)\b", line):
                # The indent of the closing brace is that of the statement's first line.
                first = number
                while first > 1 and lines[first - 1].startswith("    ") and not lines[first - 2].strip() == "" and \
                        len(lines[first - 2]) - len(lines[first - 2].lstrip()) < indent:
                    first -= 1
                start = (number, first, len(lines[first - 1]) - len(lines[first - 1].lstrip()))
        elif re.match(r"\s*\}[;,)]*$", line) and indent <= start[2]:
            length = number - start[1] + 1
            key = f"{relative}:{lines[start[1] - 1].strip()[:60]}"
            if length > MAX_FUNCTION_LINES and key not in LENGTH_WAIVERS:
                problems.append(f"{relative}:{start[1]}: a function of {length} lines (at most {MAX_FUNCTION_LINES})")
            start = None


def check_code(root):
    for path in sources(root, "*.h", "*.cc", "*.py", "*.sh", "*.proto", "CMakeLists.txt", "*/CMakeLists.txt"):
        relative = path.relative_to(root)
        lines = path.read_text(encoding="utf-8").split("\n")
        if len(lines) > MAX_FILE_LINES:
            problems.append(f"{relative}: {len(lines)} lines (at most {MAX_FILE_LINES})")
        if path.name != "tidy_test.py":
            for number, line in enumerate(lines, 1):
                if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line):
                    problems.append(f"{relative}:{number}: a mark of unfinished work")
                if re.search(r"(?<![\w.])/(work|home|farm)/\w", line):
                    problems.append(f"{relative}:{number}: a path of somebody's machine")
        if path.suffix == ".cc":
            check_functions(path, relative, lines)


def check_documents(root):
    for path in sources(root, "*.md"):
        fenced, titles = False, 0
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line.startswith("```"):
                fenced = not fenced
            titles += not fenced and line.startswith("# ")
        if titles != 1:
            problems.append(f"{path.relative_to(root)}: {titles} titles of the first level (exactly 1)")


def help_text(*command):
    return subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout


def check_flags(root, bin_dir):
    operations = (root / "docs/operations.md").read_text(encoding="utf-8")
    texts = {"eskerd": help_text(bin_dir / "eskerd"), "esker": help_text(bin_dir / "esker")}
    for command in re.findall(r"^  ([a-z]+)  ", texts["esker"].split("Subcommands:")[-1], re.MULTILINE):
        texts[f"esker {command}"] = help_text(bin_dir / "esker", command)
    for program, text in texts.items():
        for flag in sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))):
            if f"`{flag}" not in operations:
                problems.append(f"docs/operations.md: says nothing of `{flag}` ({program})")
    if len(texts) < 10:
        problems.append(f"tidy_test.py: found only {len(texts) - 2} subcommands in `esker --help`")


def main():
    root = pathlib.Path(sys.argv[1]).resolve()
    check_code(root)
    check_documents(root)
    if len(sys.argv) > 2:
        check_flags(root, pathlib.Path(sys.argv[2]))
    if problems:
        sys.exit("\n".join(problems))
    print("tidy: nothing found")


if __name__ == "__main__":
    main()
