// OutputTarget of files.h.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <utility>
#include <vector>

#include "format/base/mutex.h"
#include "format/base/status.h"
#include "format/base/text.h"
#include "tools/files.h"

namespace esker {
namespace {

namespace fs = std::filesystem;

// Where the name really is: the same whatever symbolic links lead there, with a parent that exists.
absl::StatusOr<fs::path> ResolvePath(const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("the output path is empty");
  std::error_code error;
  fs::path resolved = fs::weakly_canonical(fs::absolute(path), error);
  if (error) return FileError(error.value(), StrCat("resolving ", path));
  if (!resolved.has_filename()) resolved = resolved.parent_path();  // "new_directory/"
  if (!fs::is_directory(resolved.parent_path(), error)) {
    return absl::NotFoundError(StrCat("the directory ", resolved.parent_path().string(), " for the output ",
                                      path, " does not exist: make it first"));
  }
  return resolved;
}

bool OnAnotherFileSystem(const fs::path& path) {
  struct stat own {};
  struct stat parent {};
  return ::stat(path.c_str(), &own) == 0 && ::stat(path.parent_path().c_str(), &parent) == 0 &&
         own.st_dev != parent.st_dev;
}

// As open(2) and mkdir(2) would have made it: mkdtemp is stricter.
absl::Status ApplyUmask(const std::string& directory) {
  const mode_t mask = ::umask(0);
  ::umask(mask);
  if (::chmod(directory.c_str(), 0777 & ~mask) != 0) return FileError(errno, StrCat("changing ", directory));
  return absl::OkStatus();
}

absl::Status Rename(const fs::path& from, const fs::path& to, bool replace) {
  const unsigned flags = replace ? 0 : RENAME_NOREPLACE;
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags) == 0) return absl::OkStatus();
  // Some file systems (NFS) know no flags; a hard link does not replace either.
  if (errno == EINVAL && !replace && ::link(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
  return FileError(errno, StrCat("putting ", to.string(), " in place"));
}

}  // namespace

class OutputTarget::Impl {
 public:
  Impl(fs::path target, Kind kind, bool force) : target_(std::move(target)), kind_(kind), force_(force) {}
  ~Impl() { RemoveStaging(); }

  absl::Status Check();
  absl::Status MakeStaging();

  std::string StagingPath(const std::string& name) {
    MutexLock lock(&mu_);
    const std::string file = kind_ == Kind::kFile ? target_.filename().string() : name;
    names_.push_back(file);
    return (fs::path(staging_) / file).string();
  }

  std::string FinalPath(const std::string& name) const {
    return kind_ == Kind::kFile ? target_.string() : (target_ / name).string();
  }

  absl::Status Commit();

  void RemoveStaging() {
    MutexLock lock(&mu_);
    if (!has_staging_) return;
    // Another thread may be about to add one more file. What can't be removed stays hidden, and is nobody's
    // loss.
    std::error_code error;
    for (int attempt = 0; attempt < 3; ++attempt) {
      fs::remove_all(staging_, error);
      if (!error) break;
    }
    has_staging_ = false;
  }

 private:
  // A directory that is to be filled, rather than replaced as a whole.
  bool FillsInPlace() const { return fill_; }
  absl::Status CommitLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const fs::path target_;
  const Kind kind_;
  const bool force_;
  bool fill_ = false;  // constant after Check

  Mutex mu_;
  std::string staging_ ABSL_GUARDED_BY(mu_);
  bool has_staging_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::string> names_ ABSL_GUARDED_BY(mu_);
};

absl::Status OutputTarget::Impl::Check() {
  std::error_code error;
  const fs::file_status status = fs::symlink_status(target_, error);
  if (status.type() == fs::file_type::not_found) return absl::OkStatus();
  if (error) return FileError(error.value(), StrCat("looking at ", target_.string()));
  if (kind_ == Kind::kFile) {
    if (fs::is_directory(status)) {
      return absl::AlreadyExistsError(StrCat(target_.string(),
                                             " is a directory: name a file, or a directory "
                                             "without .safetensors at its end"));
    }
    if (force_) return absl::OkStatus();
    return absl::AlreadyExistsError(StrCat(target_.string(), " exists: --force replaces it"));
  }
  if (!fs::is_directory(status)) {
    return absl::AlreadyExistsError(StrCat(target_.string(), " exists and is no directory: name another"));
  }
  const bool empty = fs::is_empty(target_, error);
  if (error) return FileError(error.value(), StrCat("reading ", target_.string()));
  if (!empty && !force_) {
    return absl::AlreadyExistsError(
        StrCat(target_.string(),
               " is not empty: --force replaces files of the same names in it and leaves the others"));
  }
  // A mount point can't be replaced by another directory.
  fill_ = !empty || OnAnotherFileSystem(target_);
  return absl::OkStatus();
}

absl::Status OutputTarget::Impl::MakeStaging() {
  const fs::path parent = FillsInPlace() ? target_ : target_.parent_path();
  std::string staging = (parent / StrCat(".", target_.filename().string(), ".esker-partial-XXXXXX")).string();
  if (::mkdtemp(staging.data()) == nullptr) {
    return FileError(errno, StrCat("making a directory for the unfinished output in ", parent.string()));
  }
  MutexLock lock(&mu_);
  staging_ = staging;
  has_staging_ = true;
  return ApplyUmask(staging);
}

absl::Status OutputTarget::Impl::Commit() {
  absl::Status status;
  {
    MutexLock lock(&mu_);
    status = CommitLocked();
  }
  RemoveStaging();
  return status;
}

absl::Status OutputTarget::Impl::CommitLocked() {
  if (!has_staging_) return absl::CancelledError("interrupted");
  ESKER_RETURN_IF_ERROR(SyncDirectory(staging_));
  if (kind_ == Kind::kFile) {
    ESKER_RETURN_IF_ERROR(Rename(fs::path(staging_) / target_.filename(), target_, force_));
    return SyncDirectory(target_.parent_path());
  }
  if (!FillsInPlace()) {
    // Over an empty directory a plain rename is allowed; over one that was filled meanwhile it is not.
    ESKER_RETURN_IF_ERROR(Rename(staging_, target_, true));
    has_staging_ = false;
    return SyncDirectory(target_.parent_path());
  }
  for (const std::string& name : names_) {
    ESKER_RETURN_IF_ERROR(Rename(fs::path(staging_) / name, target_ / name, force_));
  }
  return SyncDirectory(target_);
}

OutputTarget::OutputTarget(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
OutputTarget::~OutputTarget() = default;

absl::StatusOr<std::unique_ptr<OutputTarget>> OutputTarget::Create(const std::string& path, Kind kind,
                                                                   bool force) {
  ESKER_ASSIGN_OR_RETURN(fs::path resolved, ResolvePath(path));
  auto impl = std::make_unique<Impl>(std::move(resolved), kind, force);
  ESKER_RETURN_IF_ERROR(impl->Check());
  ESKER_RETURN_IF_ERROR(impl->MakeStaging());
  return std::unique_ptr<OutputTarget>(new OutputTarget(std::move(impl)));
}

std::string OutputTarget::StagingPath(const std::string& name) { return impl_->StagingPath(name); }
std::string OutputTarget::FinalPath(const std::string& name) const { return impl_->FinalPath(name); }
absl::Status OutputTarget::Commit() { return impl_->Commit(); }
void OutputTarget::RemoveStaging() { impl_->RemoveStaging(); }

}  // namespace esker
