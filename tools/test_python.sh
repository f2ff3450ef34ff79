#!/usr/bin/env bash
# Builds the Python package as a user would, installs it into a virtual environment of its own (build/python), checks its types
# and runs its tests. Where PyPI can't be reached, all are skipped; where torch can't, those that need it. Each is named.
# Usage: tools/test_python.sh [pytest options…]
set -euo pipefail
cd "$(dirname "$0")/.."
package=client/python
tests=tests/python
environment=build/python
log=build/python.log
mkdir -p build
# As in tools/build.sh, with the same compiler by the same name: the wheel is made of what the release build has compiled.
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1 CXX=c++

tools/setup.sh
[[ -x $environment/bin/pip ]] || python3 -m venv "$environment"
pip="$environment/bin/pip --disable-pip-version-check --quiet"
if ! $pip download --no-deps --dest "$environment/reach" scikit-build-core >"$log" 2>&1; then
  grep -o '^def test_[a-z0-9_]*' $tests/test_*.py | sed 's/:def /::/; s/^/SKIPPED /'
  echo "test_python: all are skipped: PyPI can't be reached ($log says why)"
  exit 0
fi

echo "test_python: building and installing the package (minutes the first time; output in $log)"
start=$SECONDS
if ! { $pip install pytest pytest-xdist mypy numpy ml_dtypes fsspec tqdm safetensors huggingface_hub &&
       $pip install --force-reinstall --no-deps "./$package"; } >>"$log" 2>&1; then
  tail -40 "$log" >&2
  echo "test_python: the installation failed; the whole output is in $log" >&2
  exit 1
fi
# The CPU build where it can be had: the one on PyPI brings gigabytes for GPUs.
if ! { $pip install --retries 0 torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu || $pip install torch==2.13.0; } >>"$log" 2>&1; then
  echo "test_python: torch can't be installed ($log says why): the tests that need it are skipped, and types are not checked"
fi
echo "test_python: installed in $((SECONDS - start)) s"

version=$(sed -n 's/^project(esker VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
for program in esker eskerd; do
  said=$("$environment/bin/$program" --version)
  [[ $said == "$program $version" ]] || { echo "test_python: expected $program $version to be installed, it says: $said" >&2; exit 1; }
done
if "$environment/bin/pip" --quiet show torch >/dev/null 2>&1; then
  "$environment/bin/mypy" --config-file $package/pyproject.toml $package/esker $package/examples $tests tools/bench
fi
# Most tests wait for processes: two at a time. -P: the installed package, not the source tree. What was left out of the wheel is missed so.
"$environment/bin/python" -P -m pytest --rootdir=. -n 2 -rs $tests "$@"
