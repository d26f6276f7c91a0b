// parallel_for over a small pool of sleeping threads, one pool per module, started at its first parallel call.
//
// Threads wait on a condition variable rather than spin: torch's own OpenMP pool lives in the same process and must
// not be starved between our calls.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace basis {

class Pool {
 public:
  static Pool& instance() {
    // Never destroyed: joining threads from a static destructor can deadlock at interpreter exit.
    static Pool* pool = new Pool();
    return *pool;
  }

  // Calls body(i) once for each i in [0, count), on at most `threads` threads, the caller's included.
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
    int helpers;     // how many more workers may join; guarded by mutex_
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
  Pool::instance().run(count, threads, body);
}

}  // namespace basis
