#include "table.h"

namespace netagent::engine {
namespace {

constexpr uint8_t kMappedPrefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
constexpr size_t kHeaderBytes = 16;
constexpr size_t kVtepBytes = 16;
constexpr size_t kForwardingBytes = 16;
constexpr size_t kNeighborBytes = 28;
// A cluster of a thousand nodes with a thousand endpoints each: a bound on memory (about 80 MB), not a goal.
constexpr size_t kMaxEntries = 1'000'000;

uint64_t Mix(uint64_t value) {
  value ^= value >> 33;
  value *= 0xff51afd7ed558ccd;
  value ^= value >> 33;
  value *= 0xc4ceb9fe1a85ec53;
  return value ^ (value >> 33);
}

size_t SlotsFor(size_t entries) {
  size_t slots = 8;
  while (slots < entries * 2) slots *= 2;
  return slots;
}

}  // namespace

IpKey IpKey::FromV4(const uint8_t* four) {
  IpKey key;
  std::memcpy(key.bytes, kMappedPrefix, 12);
  std::memcpy(key.bytes + 12, four, 4);
  return key;
}

IpKey IpKey::FromV6(const uint8_t* sixteen) {
  IpKey key;
  std::memcpy(key.bytes, sixteen, 16);
  return key;
}

IpKey IpKey::FromSockaddr(const sockaddr_storage& address) {
  // Copied, not cast: the two structures alias the storage.
  if (address.ss_family == AF_INET) {
    sockaddr_in v4;
    std::memcpy(&v4, &address, sizeof v4);
    return FromV4(reinterpret_cast<const uint8_t*>(&v4.sin_addr));
  }
  if (address.ss_family == AF_INET6) {
    sockaddr_in6 v6;
    std::memcpy(&v6, &address, sizeof v6);
    return FromV6(v6.sin6_addr.s6_addr);
  }
  return IpKey{};
}

bool IpKey::is_v4() const { return std::memcmp(bytes, kMappedPrefix, 12) == 0; }

std::unique_ptr<const ForwardingTable> ForwardingTable::Empty() {
  constexpr uint8_t kEmpty[kHeaderBytes] = {'n', 'a', 'e', '1'};
  return Decode(kEmpty, 0);
}

std::unique_ptr<const ForwardingTable> ForwardingTable::Decode(Bytes encoded, uint64_t seed) {
  if (encoded.size() < kHeaderBytes || std::memcmp(encoded.data(), "nae1", 4) != 0) return nullptr;
  const size_t vteps = Load32(encoded.data() + 4);
  const size_t forwarding = Load32(encoded.data() + 8);
  const size_t neighbors = Load32(encoded.data() + 12);
  if (vteps > kMaxEntries || forwarding > kMaxEntries || neighbors > kMaxEntries) return nullptr;
  if (encoded.size() !=
      kHeaderBytes + vteps * kVtepBytes + forwarding * kForwardingBytes + neighbors * kNeighborBytes)
    return nullptr;

  std::unique_ptr<ForwardingTable> table(new ForwardingTable);
  table->seed_ = seed;
  table->vteps_.reserve(vteps);
  table->forwarding_.assign(SlotsFor(forwarding), Forwarding{0, 0, kNoVtep});
  table->neighbors_.assign(SlotsFor(neighbors), Neighbor{IpKey{}, kNoMac, 0});
  const uint8_t* at = encoded.data() + kHeaderBytes;
  for (size_t i = 0; i < vteps; i++, at += kVtepBytes) table->vteps_.push_back(IpKey::FromV6(at));
  for (size_t i = 0; i < forwarding; i++, at += kForwardingBytes) {
    const uint32_t vni = Load32(at);
    const uint64_t mac = LoadMac(at + 4);
    const uint32_t vtep = Load32(at + 12);
    if (vni > 0xffffff || Load16(at + 10) != 0 || vtep >= vteps) return nullptr;
    table->forwarding_[table->ForwardingSlot(vni, mac)] = Forwarding{mac, vni, vtep};
  }
  for (size_t i = 0; i < neighbors; i++, at += kNeighborBytes) {
    const uint32_t vni = Load32(at);
    const IpKey ip = IpKey::FromV6(at + 12);
    if (vni > 0xffffff || Load16(at + 10) != 0) return nullptr;
    table->neighbors_[table->NeighborSlot(vni, ip)] = Neighbor{ip, LoadMac(at + 4), vni};
  }
  return table;
}

/** The slot of the key, or the free slot where it belongs. */
size_t ForwardingTable::ForwardingSlot(uint32_t vni, uint64_t mac) const {
  const size_t mask = forwarding_.size() - 1;
  size_t slot = Mix(seed_ ^ mac ^ (static_cast<uint64_t>(vni) << 40) ^ vni) & mask;
  while (forwarding_[slot].vtep != kNoVtep &&
         (forwarding_[slot].mac != mac || forwarding_[slot].vni != vni))
    slot = (slot + 1) & mask;
  return slot;
}

size_t ForwardingTable::NeighborSlot(uint32_t vni, const IpKey& ip) const {
  const size_t mask = neighbors_.size() - 1;
  size_t slot = Mix(Mix(seed_ ^ LoadRaw64(ip.bytes) ^ vni) ^ LoadRaw64(ip.bytes + 8)) & mask;
  while (neighbors_[slot].mac != kNoMac && (neighbors_[slot].vni != vni || !(neighbors_[slot].ip == ip)))
    slot = (slot + 1) & mask;
  return slot;
}

uint32_t ForwardingTable::FindVtep(uint32_t vni, uint64_t mac) const {
  return forwarding_[ForwardingSlot(vni, mac)].vtep;
}

uint64_t ForwardingTable::FindMac(uint32_t vni, const IpKey& ip) const {
  return neighbors_[NeighborSlot(vni, ip)].mac;
}

}  // namespace netagent::engine
