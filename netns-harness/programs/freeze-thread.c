/*
 * freeze-thread TID: stops one thread of a running process, which signals cannot: they stop the whole process. Says
 * "frozen" and holds it until it is ended itself.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
  const pid_t thread = argc == 2 ? atoi(argv[1]) : 0;
  int status;
  if (thread <= 0 || ptrace(PTRACE_SEIZE, thread, 0, 0) != 0 || ptrace(PTRACE_INTERRUPT, thread, 0, 0) != 0 ||
      waitpid(thread, &status, __WALL) != thread) {
    fprintf(stderr, "freeze-thread %d: %s\n", (int)thread, strerror(errno));
    return 1;
  }
  puts("frozen");
  fflush(stdout);
  for (;;) pause();
}
