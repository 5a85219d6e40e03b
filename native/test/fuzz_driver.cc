// Drives LLVMFuzzerTestOneInput without clang: g++'s -fsanitize-coverage=trace-pc reports the branches taken, inputs that
// take a new one are kept and mutated further. With KEEP=1 every input is in FINDINGS/current before it runs.
//   fuzz SECONDS CORPUS FINDINGS      SEED=n repeats a run
// Inputs of the corpus run first. New ones are written to FINDINGS; move the few worth keeping to the corpus by hand.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr size_t kMapSize = 1 << 16;
constexpr size_t kMaxInput = 8192;
uint8_t hits[kMapSize];
uintptr_t previous = 0;

}  // namespace

/** Called by the compiler's instrumentation at every basic block: counts edges, as AFL does. */
extern "C" __attribute__((no_sanitize("address", "undefined"))) void __sanitizer_cov_trace_pc() {
  const auto here = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  uint8_t& cell = hits[(here ^ previous) % kMapSize];
  if (cell < 255) cell++;
  previous = here >> 1;
}

namespace {

using Input = std::vector<uint8_t>;
std::mt19937_64 random_bits;
uint8_t seen[kMapSize];

size_t Below(size_t limit) { return random_bits() % limit; }

/** Runs it; whether it went somewhere new, or round a loop another order of magnitude. */
bool IsNew(const Input& input) {
  std::fill_n(hits, kMapSize, 0);
  previous = 0;
  LLVMFuzzerTestOneInput(input.data(), input.size());
  bool fresh = false;
  for (size_t i = 0; i < kMapSize; i++) {
    if (hits[i] == 0) continue;
    const auto order = static_cast<uint8_t>(1u << std::min(7, 31 - __builtin_clz(hits[i])));
    fresh |= (seen[i] & order) == 0;
    seen[i] |= order;
  }
  return fresh;
}

void Mutate(Input& input, const std::vector<Input>& corpus) {
  for (size_t rounds = 1 + Below(6); rounds > 0; rounds--) {
    if (input.empty()) input.push_back(0);
    const size_t at = Below(input.size());
    switch (Below(8)) {
      case 0: input[at] ^= static_cast<uint8_t>(1 << Below(8)); break;
      case 1: input[at] = static_cast<uint8_t>(random_bits()); break;
      case 2: input[at] = static_cast<uint8_t>(input[at] + Below(9) - 4); break;
      case 3: input.resize(at); break;
      case 4: input.insert(input.begin() + static_cast<long>(at), 1 + Below(16), static_cast<uint8_t>(random_bits())); break;
      case 5: {
        constexpr uint8_t kEdges[] = {0, 1, 0x7f, 0x80, 0xff, 20, 40, 0x45, 6, 17};
        input[at] = kEdges[Below(sizeof kEdges)];
        break;
      }
      case 6: {  // a piece of itself again: frames that follow one another
        const Input piece(input.begin() + static_cast<long>(at), input.begin() + static_cast<long>(at + Below(input.size() - at + 1)));
        input.insert(input.end(), piece.begin(), piece.end());
        break;
      }
      default: {
        const Input& other = corpus[Below(corpus.size())];
        if (other.empty()) break;
        const size_t from = Below(other.size());
        input.resize(at);
        input.insert(input.end(), other.begin() + static_cast<long>(from), other.end());
      }
    }
  }
  if (input.size() > kMaxInput) input.resize(kMaxInput);
}

void Write(const std::string& path, const Input& input) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(input.data()), static_cast<long>(input.size()));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return std::fprintf(stderr, "usage: fuzz SECONDS CORPUS FINDINGS\n"), 2;
  const char* given = std::getenv("SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  random_bits.seed(seed);
  const std::string findings = arguments[3];
  std::filesystem::create_directories(findings);

  std::vector<Input> corpus = {{0}, {1}, {2}, {3}};
  for (const auto& entry : std::filesystem::directory_iterator(arguments[2])) {
    std::ifstream file(entry.path(), std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  for (const Input& input : corpus) IsNew(input);
  const size_t given_inputs = corpus.size();
  const std::time_t end = std::time(nullptr) + std::atol(arguments[1]);
  uint64_t runs = 0;

  for (; runs % 256 != 0 || std::time(nullptr) < end; runs++) {
    Input input = corpus[Below(corpus.size())];
    Mutate(input, corpus);
    if (std::getenv("KEEP") != nullptr) Write(findings + "/current", input);
    if (!IsNew(input)) continue;
    Write(findings + "/" + std::to_string(corpus.size()), input);
    corpus.push_back(std::move(input));
  }
  size_t edges = 0;
  for (const uint8_t orders : seen) edges += orders != 0 ? 1 : 0;
  std::printf("fuzz: %llu runs, %zu edges, %zu inputs of %zu given, SEED=%llu\n", static_cast<unsigned long long>(runs),
              edges, corpus.size(), given_inputs, static_cast<unsigned long long>(seed));
  return 0;
}
