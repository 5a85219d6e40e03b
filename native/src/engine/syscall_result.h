#pragma once
#include <cerrno>
#include <string>

namespace netagent::engine {

/** Success, or the system call that failed, on what, and how. */
struct SyscallResult {
  int error = 0;
  const char* syscall = "";
  std::string object;

  bool ok() const { return error == 0; }
  static SyscallResult Ok() { return {}; }
  static SyscallResult Failed(const char* syscall, std::string object) {
    return {errno, syscall, std::move(object)};
  }
};

}  // namespace netagent::engine
