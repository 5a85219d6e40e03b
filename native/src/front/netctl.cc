// netctl for programs. Starting node takes longer than any command, so the words go to the agent, which runs netctl's
// own code on them (src/agent/command-server.ts has the format) and sends back what to print. No command is known here:
// for what the agent will not run, for a person at a terminal, and for another agent than the usual, netctl itself
// takes over this process.

#include <limits.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "../unique_fd.h"

namespace {

using netagent::UniqueFd;

constexpr int kUnreachable = 3;
/** As the exit code of an answer: "run it yourself". */
constexpr unsigned char kNotHere = 255;
constexpr size_t kAnswerHeader = 5; // exit code, length of the standard output's text

bool MayBeHandedOver(int argc, char** argv) {
  if (argc < 2 || isatty(STDOUT_FILENO) || isatty(STDERR_FILENO)) return false;
  for (int i = 1; i < argc; i++)
    if (std::string_view(argv[i]).starts_with("--socket")) return false;
  return true;
}

/** Replaces this process by netctl itself: what the package starts it with, or node and the checkout's build. */
int RunItself(char** argv) {
  char self[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
  if (length > 0) {
    self[length] = '\0';
    std::string root = self;
    for (int up = 0; up < 4; up++) root.resize(root.find_last_of('/')); // native/build/Release/netctl
    execv((root + "/netctl").c_str(), argv);
    std::string program = root + "/dist/src/cli/main.js";
    std::vector<char*> words{argv[0], program.data()};
    for (char** word = argv + 1; word[-1] != nullptr; word++) words.push_back(*word);
    execvp("node", words.data());
  }
  fprintf(stderr, "netctl: start node: %s (install nodejs)\n", strerror(errno));
  return 1;
}

/** An invalid one when nobody listens. */
UniqueFd ConnectToAgent() {
  const char* named = getenv("NETAGENT_SOCKET");
  const std::string path = std::string(named != nullptr ? named : "/run/netagent/netagent.sock") + ".cmd";
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return UniqueFd();
  memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return UniqueFd();
  if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return UniqueFd();
  return socket;
}

bool WriteAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes.remove_prefix(written);
  }
  return true;
}

std::string ReadAll(int fd) {
  std::string all;
  char part[16384];
  for (;;) {
    const ssize_t length = read(fd, part, sizeof part);
    if (length < 0 && errno == EINTR) continue;
    if (length <= 0) return all;
    all.append(part, length);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (!MayBeHandedOver(argc, argv)) return RunItself(argv);
  // A reader that has gone away ends us like any other program; an agent that has must not.
  UniqueFd agent = ConnectToAgent();
  if (!agent.valid()) return RunItself(argv);
  std::string words;
  for (int i = 1; i < argc; i++) words.append(argv[i]).push_back('\0');
  signal(SIGPIPE, SIG_IGN);
  const bool sent = WriteAll(agent.get(), words) && shutdown(agent.get(), SHUT_WR) == 0;
  signal(SIGPIPE, SIG_DFL);
  const std::string answer = sent ? ReadAll(agent.get()) : std::string();
  if (answer.size() < kAnswerHeader) {
    fprintf(stderr, "netctl: netagent went away before it answered\n");
    return kUnreachable;
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(answer.data());
  if (bytes[0] == kNotHere) return RunItself(argv);
  const size_t out = static_cast<size_t>(bytes[1]) << 24 | bytes[2] << 16 | bytes[3] << 8 | bytes[4];
  const std::string_view text = std::string_view(answer).substr(kAnswerHeader);
  if (out > text.size()) {
    fprintf(stderr, "netctl: netagent went away while it answered\n");
    return kUnreachable;
  }
  const bool said = WriteAll(STDOUT_FILENO, text.substr(0, out)) & WriteAll(STDERR_FILENO, text.substr(out));
  return said ? bytes[0] : 1;
}
