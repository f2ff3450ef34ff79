#include "tools/bench_report.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_format.h"

namespace esker {
namespace {

struct Spread {
  double min = 0;
  double median = 0;
  double max = 0;
};

Spread SpreadOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  const double median = values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  return {values.front(), median, values.back()};
}

}  // namespace

void ReportFigures(Cli* cli, const std::string& title, const std::vector<BenchFigure>& figures) {
  Table table({{title}, {"min", Align::kRight}, {"median", Align::kRight}, {"max", Align::kRight}});
  Json spreads = Json::object();
  for (const BenchFigure& figure : figures) {
    if (figure.values.empty()) {
      cli->result[figure.name] = nullptr;
      continue;
    }
    const Spread of = SpreadOf(figure.values);
    cli->result[figure.name] = of.median;
    spreads[figure.name] = {{"min", of.min}, {"median", of.median}, {"max", of.max}};
    table.Add({figure.label, absl::StrFormat("%.3f", of.min), absl::StrFormat("%.3f", of.median),
               absl::StrFormat("%.3f", of.max)});
  }
  cli->result["spread"] = std::move(spreads);
  if (!cli->json) std::printf("%s", table.ToString().c_str());
}

}  // namespace esker
