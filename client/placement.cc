#include "client/placement.h"

namespace esker {

std::vector<std::string> PlacePart(uint32_t rank, const std::vector<std::string>& servers) {
  if (servers.empty()) return {};
  return {servers[rank % servers.size()]};
}

}  // namespace esker
