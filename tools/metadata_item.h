// Where `esker save` keeps a safetensors file's __metadata__, and `esker restore` finds it.
#pragma once

#include <cstdint>

namespace esker {

inline constexpr const char* kMetadataItem = "safetensors.__metadata__";  // a JSON object of texts
inline constexpr uint32_t kMetadataRank = 0;

}  // namespace esker
