// The file ADDRESS in the data directory: where this directory's server listens, for processes of this
// machine that look for one to join.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace esker {

// The file is there, and locked (flock), from Write until the object or the process ends, however it ends.
// Who wants to join reads the line in it and then tries to take a shared lock: refused means that the server
// lives, taken means that the file is what a killed server left behind.
class AddressFile {
 public:
  // `address`: "host:port". The file appears in one step, locked and whole, in the place of one that a killed
  // server left. The caller holds the data directory's lock. Errors: as the system says.
  static absl::StatusOr<std::unique_ptr<AddressFile>> Write(const std::string& directory,
                                                            const std::string& address);
  // Removes the file.
  ~AddressFile();
  AddressFile(const AddressFile&) = delete;
  AddressFile& operator=(const AddressFile&) = delete;

 private:
  AddressFile(std::string path, int fd);

  const std::string path_;
  const int fd_;
};

}  // namespace esker
