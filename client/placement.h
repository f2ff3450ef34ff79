// Which servers hold a rank's part.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace esker {

// The servers ("host:port") to which `rank` sends its part. A pure function of its arguments; never empty if
// `servers` isn't. With the single copy of today it is one of them, balanced over the ranks.
std::vector<std::string> PlacePart(uint32_t rank, const std::vector<std::string>& servers);

}  // namespace esker
