// The threads that products and attention run on.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__linux__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace kljudge __attribute__((visibility("hidden"))) {

// Work in numbered parts, done by whoever comes.
struct Job {
  std::function<void(int64_t)> part;
  int64_t parts;
  std::atomic<int64_t> next{0}, done{0};

  void Help() {
    for (int64_t i; (i = next.fetch_add(1)) < parts;) {
      part(i);
      done.fetch_add(1);
    }
  }
};

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Threads that stay awake for a moment after each job: between two products of a model lie some ten microseconds, and
// to wake a thread that sleeps, as XLA's pool does, takes longer than many of them. One job at a time.
class Workers {
 public:
  static Workers& Get() {
    static Workers* workers = new Workers;  // never destroyed: threads may outlive main
    return *workers;
  }

  // Does all parts, on as many threads as are free. If another thread's job is going on, this one does its own alone.
  void Run(int64_t parts, std::function<void(int64_t)> part) {
    if (parts == 1 || threads_ == 0 || owned_.exchange(true)) {
      for (int64_t i = 0; i < parts; ++i) part(i);
      return;
    }
    auto job = std::make_shared<Job>();
    job->part = std::move(part);
    job->parts = parts;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      generation_.fetch_add(1);
    }
    if (asleep_.load() > 0) wake_.notify_all();
    job->Help();
    // A thread that comes late finds no part left, and touches nothing but its own hold of the job. One that lost its
    // processor amid a part needs one to end it.
    for (int spins = 0; job->done.load() < parts; ++spins) spins < kSpins ? Pause() : std::this_thread::yield();
    owned_.store(false);
  }

 // Threads, the caller's included.
  int64_t Count() const { return threads_ + 1; }

 private:
  Workers() {
#if defined(__linux__) || defined(__APPLE__)
    // A process that forks takes no threads along: there the caller does all parts.
    pthread_atfork(nullptr, nullptr, [] { Get().threads_ = 0; });
#endif
    const int64_t cores = std::max<int64_t>(1, Cores());
    try {
      for (; threads_ < cores - 1; ++threads_) std::thread([this] { Serve(); }).detach();
    } catch (const std::system_error&) {  // as many as the system allows
    }
  }

  // What this process may use: KLJUDGE_THREADS, or the processors that it may run on, or what time of them its
  // container grants.
  static int64_t Cores() {
    if (const char* wanted = std::getenv("KLJUDGE_THREADS")) {
      const long count = std::strtol(wanted, nullptr, 10);
      if (count > 0) return count;
    }
    int64_t cores = std::thread::hardware_concurrency();
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
    double quota = 0, period = 0;
    if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {  // "max 100000" where there is no limit
      if (std::fscanf(file, "%lf %lf", &quota, &period) != 2) quota = 0;
      std::fclose(file);
    } else if ((file = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r"))) {
      if (std::fscanf(file, "%lf", &quota) != 1) quota = 0;
      std::fclose(file);
      if ((file = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r"))) {
        if (std::fscanf(file, "%lf", &period) != 1) period = 0;
        std::fclose(file);
      }
    }
    if (quota > 0 && period > 0) cores = std::min<int64_t>(cores, std::max<int64_t>(1, std::llround(quota / period)));
#endif
    return cores;
  }

  void Serve() {
    uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < kSpins && generation_.load(std::memory_order_relaxed) == seen; ++i) Pause();
      std::shared_ptr<Job> job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        if (generation_.load() == seen) {
          asleep_.fetch_add(1);
          wake_.wait(lock, [&] { return generation_.load() != seen; });
          asleep_.fetch_sub(1);
        }
        seen = generation_.load();
        job = job_;
      }
      job->Help();
    }
  }

  static constexpr int kSpins = 4000;  // some 0.1 ms
  std::mutex mutex_;
  std::condition_variable wake_;
  std::shared_ptr<Job> job_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> asleep_{0};
  std::atomic<bool> owned_{false};
  int64_t threads_ = 0;
};

// Several operations as one job: each has Whole() pieces of work, which are shared out in parts of Part() pieces that
// its Do(begin, end) does.
template <class Op>
void RunAll(const std::vector<Op>& ops) {
  std::vector<int64_t> first;  // the number of each operation's first part
  int64_t parts = 0;
  for (const Op& op : ops) {
    first.push_back(parts);
    parts += (op.Whole() + op.Part() - 1) / op.Part();
  }
  Workers::Get().Run(parts, [&](int64_t number) {
    size_t which = ops.size() - 1;
    while (first[which] > number) --which;
    const int64_t part = ops[which].Part(), begin = (number - first[which]) * part;
    ops[which].Do(begin, std::min(ops[which].Whole(), begin + part));
  });
}

}  // namespace kljudge
