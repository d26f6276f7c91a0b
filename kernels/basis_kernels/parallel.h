// parallel_for on torch's OpenMP threads or, where torch has none, on a small pool of sleeping threads.
//
// OpenMP's threads spin for milliseconds after each of torch's parallel regions: where our calls alternate with
// torch's, a separate pool would wait that long for a core. torch loads a renamed OpenMP library with global symbols,
// so its entry point is looked up at run time, not linked.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace basis {

// libgomp's entry point for "#pragma omp parallel", which other OpenMP libraries also export.
using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

inline Parallel openmp() {
#if defined(__linux__)
  static std::atomic<Parallel> known{nullptr};
  Parallel found = known.load(std::memory_order_relaxed);
  if (!found) {  // torch may be imported after this module
    found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    known.store(found, std::memory_order_relaxed);
  }
  return found;
#else
  return nullptr;
#endif
}

class Pool {
 public:
  static Pool& instance() {
    // Never destroyed: joining threads from a static destructor can deadlock at interpreter exit.
    static Pool* pool = new Pool();
    return *pool;
  }

  // Calls body(i) once for each i in [0, count), on at most `threads` threads including the caller's.
  void run(int64_t count, int threads, const std::function<void(int64_t)>& body) {
    if (threads > count) threads = static_cast<int>(count);
    if (threads <= 1) {
      for (int64_t i = 0; i < count; ++i) body(i);
      return;
    }
    std::lock_guard<std::mutex> one_call(call_);
    auto job = std::make_shared<Job>(count, threads - 1, &body);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (static_cast<int>(workers_.size()) < threads - 1) {
        workers_.emplace_back([this] { work(); });
        workers_.back().detach();
      }
      job_ = job;
      ++generation_;
    }
    wake_.notify_all();
    job->drain();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return job->active == 0; });
    job_.reset();
  }

 private:
  struct Job {
    Job(int64_t n, int helpers_wanted, const std::function<void(int64_t)>* f)
        : count(n), helpers(helpers_wanted), body(f) {}
    void drain() {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) (*body)(i);
    }
    const int64_t count;
    int helpers;     // number of further workers that may join; guarded by mutex_
    int active = 0;  // workers inside drain(); guarded by mutex_
    const std::function<void(int64_t)>* body;
    std::atomic<int64_t> next{0};
  };

  void work() {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      std::shared_ptr<Job> job = job_;
      if (!job || job->helpers == 0) continue;
      --job->helpers;
      ++job->active;
      lock.unlock();
      job->drain();
      lock.lock();
      if (--job->active == 0) done_.notify_all();
    }
  }

  std::mutex call_, mutex_;
  std::condition_variable wake_, done_;
  std::shared_ptr<Job> job_;
  uint64_t generation_ = 0;
  std::vector<std::thread> workers_;
};

inline void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& body) {
  if (threads > count) threads = static_cast<int>(count);
  const Parallel parallel = threads > 1 ? openmp() : nullptr;
  if (!parallel) return Pool::instance().run(count, threads, body);
  struct Region {
    const int64_t count;
    const std::function<void(int64_t)>& body;
    std::atomic<int64_t> next{0};
  } region{count, body};
  parallel(
      [](void* data) {  // on each thread of the team
        Region& all = *static_cast<Region*>(data);
        for (int64_t i; (i = all.next.fetch_add(1, std::memory_order_relaxed)) < all.count;) all.body(i);
      },
      &region, static_cast<unsigned>(threads), 0);
}

}  // namespace basis
