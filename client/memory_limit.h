// How much memory this process may still take before the system ends it.
#pragma once

#include <cstdint>
#include <string>

namespace esker {

// The smaller of what the machine has left and what the control groups (v2) of this process leave, without
// what the page cache would give back. UINT64_MAX if neither can be read.
uint64_t AvailableMemoryBytes();

// The same, from other places, for tests: `meminfo` like /proc/meminfo, `cgroup` like /proc/self/cgroup,
// `cgroup_root` like /sys/fs/cgroup.
uint64_t AvailableMemoryBytes(const std::string& meminfo, const std::string& cgroup,
                              const std::string& cgroup_root);

}  // namespace esker
