#pragma once
#include <napi.h>

#include "unique_fd.h"

namespace netagent {

/**
 * Puts the calling thread into a network namespace for the guard's life. Everything in between must be
 * synchronous: the thread is node's main thread, and whatever ran on it meanwhile would be in the wrong place.
 */
class NamespaceGuard {
 public:
  NamespaceGuard() = default;
  NamespaceGuard(const NamespaceGuard&) = delete;
  NamespaceGuard& operator=(const NamespaceGuard&) = delete;
  /** Goes back. A thread that cannot go home would write host state into a stranger's namespace: abort. */
  ~NamespaceGuard();

  /** Enters the namespace behind `fd`; a negative fd stays where we are. Returns 0 or errno. */
  int Enter(int fd);
  /** Enters a namespace that nobody else has yet. Returns 0 or errno. */
  int EnterNew();

 private:
  int Remember();
  UniqueFd home_;
};

void InitNetns(Napi::Env env, Napi::Object exports);

}  // namespace netagent
