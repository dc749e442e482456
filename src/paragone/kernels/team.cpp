#include "team.h"

#include <algorithm>
#include <chrono>
#include <utility>

#if defined(__linux__)
#include <sys/resource.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace {

constexpr int SPINS = 50000;  // about a millisecond: what Python does between two steps
constexpr int LOST = 4;  // a run is contended where more than this part of its members' time was spent waiting
constexpr int IN_A_ROW = 4;  // contended runs: what comes now and then, as a server's other process, is no reason
constexpr int SHORTEST_PAUSE = 8, LONGEST_PAUSE = 256;  // runs
constexpr int PATIENCE = 2000;  // then somebody else has the processor of those that are waited for: theirs is this one

struct Stopped {};  // what a barrier throws where another member has thrown

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

long now() {
    auto time = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
}

// How often somebody else got the processor of this thread, which did not want to give it, since it last asked.
int preemptions() {
#if defined(__linux__)
    thread_local long before = 0;
    rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    int since = (int)(usage.ru_nivcsw - before);
    before = usage.ru_nivcsw;
    return since;
#else
    return 1;  // it may be
#endif
}

Team* team = nullptr;
std::mutex* making = new std::mutex;

}  // namespace

Team& Team::shared() {
    std::lock_guard lock(*making);
    if (!team) {
        team = new Team;
#if defined(__unix__) || defined(__APPLE__)
        static bool registered = false;
        if (!registered) pthread_atfork(nullptr, nullptr, [] {  // its threads are not in the child
            team = nullptr;
            making = new std::mutex;
        });
        registered = true;
#endif
    }
    return *team;
}

// How many members a run gets of those that it asks for. Where others want the processors too, run after run, members
// wait for members that do not run, and fewer of them are faster: half of them, for a while that doubles as long as it
// helps nothing to try again. Members that merely wait for one with a longer task are not meant.
int Team::members(int size) {
    bool contended = preempted_ > 0 && waited_ > lasted_ * size_ / LOST;
    if (paused_ == 0) contended_ = contended ? contended_ + 1 : 0;
    if (contended && (contended_ >= IN_A_ROW || pause_ > 0)) {
        pause_ = std::min(LONGEST_PAUSE, std::max(SHORTEST_PAUSE, 2 * pause_));
        paused_ = pause_;
    } else if (paused_ > 0) {
        paused_--;
    } else {
        pause_ = 0;
    }
    waited_ = preempted_ = 0;
    return paused_ > 0 ? std::max(1, size / 2) : size;
}

void Team::run(int size, const std::function<void(int)>& work, bool seldom) {
    std::lock_guard lock(turn_);
    if (!seldom) size = members(size);
    if (size == 1) {  // nobody else is woken
        size_ = 1;
        count_anew();
        work(0);
        return;
    }
    grow(size);
    work_ = &work;
    size_ = size;
    count_anew();
    left_.store((int)threads_.size(), std::memory_order_relaxed);
    long begin = now();
    runs_.fetch_add(1, std::memory_order_release);
    runs_.notify_all();
    this->work(0);
    preempted_.fetch_add(preemptions(), std::memory_order_relaxed);
    for (int left, spin = 0; (left = left_.load(std::memory_order_acquire)); spin++)
        if (spin < PATIENCE) relax();
        else left_.wait(left, std::memory_order_acquire);
    lasted_ = now() - begin;
    if (seldom) waited_ = preempted_ = 0;  // nothing of it says how others would fare
    if (!broken_) return;
    broken_ = false;
    arrived_ = 0;
    std::rethrow_exception(std::exchange(thrown_, nullptr));
}

// A member's part of a run. Others may be waiting for it at a barrier when it throws: they are let go.
void Team::work(int number) {
    try {
        (*work_)(number);
    } catch (...) {
        std::lock_guard lock(throwing_);
        if (broken_.exchange(true)) return;
        thrown_ = std::current_exception();
        phase_.fetch_add(1, std::memory_order_release);
        phase_.notify_all();
    }
}

void Team::count_anew() {
    taken_.store(0, std::memory_order_relaxed);
    for (int of = 0; of < size_; of++) shares_[of].taken.store(0, std::memory_order_relaxed);
}

void Team::grow(int size) {
    if ((int)shares_.size() < size) std::vector<Share>(size).swap(shares_);
    while ((int)threads_.size() + 1 < size) {
        int number = (int)threads_.size() + 1;
        threads_.emplace_back([this, number, seen = runs_.load()] { member(number, seen); });
        if (!processors_.empty()) place(number);
    }
}

void Team::pin(const std::vector<int>& processors) {
    std::lock_guard lock(turn_);
    processors_ = processors;
    for (int number = 1; number <= (int)threads_.size(); number++) place(number);
}

void Team::place(int number) {
#if defined(__linux__)
    cpu_set_t set;
    if (processors_.empty()) {
        if (sched_getaffinity(0, sizeof set, &set)) return;
    } else {
        CPU_ZERO(&set);
        CPU_SET(processors_[number % processors_.size()], &set);
    }
    pthread_setaffinity_np(threads_[number - 1].native_handle(), sizeof set, &set);  // where it may not, it runs anywhere
#else
    (void)number;
#endif
}

void Team::member(int number, uint32_t seen) {
    for (;;) {
        for (int spin = 0; runs_.load(std::memory_order_acquire) == seen && spin < SPINS; spin++) relax();
        runs_.wait(seen, std::memory_order_acquire);
        seen = runs_.load(std::memory_order_acquire);
        if (number < size_) {
            work(number);
            preempted_.fetch_add(preemptions(), std::memory_order_relaxed);
        }
        if (left_.fetch_sub(1, std::memory_order_release) == 1) left_.notify_one();
    }
}

void Team::barrier() {
    if (size_ == 1) {
        count_anew();
        return;
    }
    uint32_t phase = phase_.load(std::memory_order_acquire);  // who sees that of a member that threw sees that it did
    if (broken_.load(std::memory_order_relaxed)) throw Stopped{};
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        arrived_.store(0, std::memory_order_relaxed);
        count_anew();
        phase_.store(phase + 1, std::memory_order_release);
        phase_.notify_all();
        return;
    }
    int spin = 0;
    for (; spin < PATIENCE && phase_.load(std::memory_order_acquire) == phase; spin++) relax();
    if (spin == PATIENCE) {
        long begin = now();
        phase_.wait(phase, std::memory_order_acquire);
        waited_.fetch_add(now() - begin, std::memory_order_relaxed);
    }
    if (broken_.load(std::memory_order_relaxed)) throw Stopped{};
}
