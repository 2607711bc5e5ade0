// How well accesses of a warp fall together: sectors of global memory, banks of shared memory.
//
// The k-th time that lanes of a warp come to one place counts as one request. A request to global memory moves sectors
// of 32 bytes. One to shared memory is served in phases of 32, 16 or 8 lanes, for accesses of at most 4, 8 or 16 bytes;
// in a phase each of 32 banks gives one word of 4 bytes at a time, to all lanes that want it.
#include <algorithm>
#include <map>
#include <unordered_map>

#include "state.h"

bool metrics_wanted = false;

namespace {

constexpr uintptr_t sector_bytes = 32, word_bytes = 4, banks = 32;

enum Kind { global_load, global_store, global_atomic, shared_load, shared_store, shared_atomic, kinds };

struct LaneAccess {
  uintptr_t address;
  unsigned lane, size;
};
struct Site {
  uint64_t place, kind, requests, sectors, ideal_sectors, phases, ways, worst_ways;
};
typedef std::pair<uint64_t, unsigned> Where;  // place and kind

std::map<Where, Site> sites;
std::map<std::pair<Where, std::pair<unsigned, unsigned>>, std::vector<LaneAccess>> requests;  // by warp and visit
std::map<std::pair<Where, unsigned>, unsigned> visits;                                        // by thread
std::vector<Site> report;

unsigned distinct(std::vector<uintptr_t>& values) {
  std::sort(values.begin(), values.end());
  return std::unique(values.begin(), values.end()) - values.begin();
}

void count_sectors(Site& site, const std::vector<LaneAccess>& lanes) {
  std::vector<uintptr_t> sectors, bytes;
  for (const LaneAccess& lane : lanes)
    for (unsigned i = 0; i < lane.size; i++) {
      sectors.push_back((lane.address + i) / sector_bytes);
      bytes.push_back(lane.address + i);
    }
  site.sectors += distinct(sectors);
  site.ideal_sectors += (distinct(bytes) + sector_bytes - 1) / sector_bytes;
}

void count_ways(Site& site, const std::vector<LaneAccess>& lanes) {
  unsigned size = lanes[0].size, together = size >= 16 ? 8 : size >= 8 ? 16 : 32;
  for (unsigned first = 0; first < warp_size; first += together) {
    std::vector<uintptr_t> words;
    for (const LaneAccess& lane : lanes)
      if (lane.lane >= first && lane.lane < first + together)
        for (unsigned i = 0; i < lane.size; i += word_bytes) words.push_back((lane.address + i) / word_bytes);
    if (words.empty()) continue;
    unsigned of_bank[banks] = {};
    words.resize(distinct(words));
    for (uintptr_t word : words) of_bank[word % banks]++;
    uint64_t ways = *std::max_element(of_bank, of_bank + banks);
    site.phases++;
    site.ways += ways;
    site.worst_ways = std::max(site.worst_ways, ways);
  }
}

}  // namespace

void begin_metrics() {
  sites.clear();
  requests.clear();
  visits.clear();
}

void count_access(const void* address, size_t size, Access access, bool shared, const void* place) {
  if (access == Access::async_write) return;  // the copy's arrival; its issue is counted by what it reads
  unsigned kind = (shared ? shared_load : global_load) + (access == Access::read     ? 0
                                                          : access == Access::atomic ? 2
                                                                                     : 1);
  Where where{(uint64_t)place, kind};
  const Fiber& fiber = *worker->running;
  unsigned visit = visits[{where, fiber.thread}]++;
  requests[{where, {fiber.warp, visit}}].push_back({(uintptr_t)address, fiber.lane, (unsigned)size});
}

void count_block() {
  for (const auto& [key, lanes] : requests) {
    Site& site = sites[key.first];
    site.place = key.first.first;
    site.kind = key.first.second;
    site.requests++;
    if (site.kind >= shared_load) count_ways(site, lanes);
    else count_sectors(site, lanes);
  }
  requests.clear();
  visits.clear();
}

extern "C" {
// What the last launch counted: `*count` entries of eight numbers each.
const void* emu_metrics(uint64_t* count) {
  report.clear();
  for (const auto& entry : sites) report.push_back(entry.second);
  *count = report.size();
  return report.data();
}
}
