// The figures of a benchmark, run by run, as a table or as JSON.
#pragma once

#include <string>
#include <vector>

#include "tools/cli.h"

namespace esker {

struct BenchFigure {
  std::string name;   // its key in the JSON
  std::string label;  // in the table
  // One of each run. Empty: it can't be known here; its key is there all the same, with null.
  std::vector<double> values;
};

// Fills cli->result: each figure's median under its name, and minimum, median and maximum in "spread".
// Unless JSON is asked for, prints them as a table headed `title`.
void ReportFigures(Cli* cli, const std::string& title, const std::vector<BenchFigure>& figures);

}  // namespace esker
