//! A pool of threads that run one numbered set of tasks at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// How often a waiting thread looks before it goes to sleep: some tens of microseconds, about the
/// gap between two kernels.
const SPINS_MAX: usize = 4_000;

/// Threads that wait for work. Which thread runs a task never changes the result: tasks write
/// disjoint outputs and reduce nothing among themselves.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time.
    turn: Mutex<()>,
    /// Numbers of scratch memory that every thread was given; see `scratch::reserve`.
    scratch: AtomicUsize,
}

struct Shared {
    state: Mutex<State>,
    woken: Condvar,
    /// Mirrors `State::epoch`, to be watched without the lock.
    epoch: AtomicUsize,
    next: AtomicUsize,
    /// Workers inside the current job.
    active: AtomicUsize,
}

#[derive(Default)]
struct State {
    epoch: usize,
    job: Option<Job>,
    closing: bool,
    panicked: bool,
}

/// A borrowed closure, its lifetime erased; [`Pool::run`] does not return while a worker can hold it.
#[derive(Clone, Copy)]
struct Job {
    call: *const (dyn Fn(usize) + Sync),
    n_tasks: usize,
}

// SAFETY: the closure behind the pointer is `Sync`, and `Pool::run` keeps it alive for as long as
// any worker is counted in `active`.
unsafe impl Send for Job {}

impl Pool {
    /// A pool that computes on `n_threads` threads, the caller's among them.
    pub(crate) fn new(n_threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            woken: Condvar::new(),
            epoch: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
        });
        let spawn = |_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.work())
        };
        let workers = (1..n_threads.max(1)).map(spawn).collect();
        Pool { shared, workers, turn: Mutex::new(()), scratch: AtomicUsize::new(0) }
    }

    pub(crate) fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0)` … `task(n_tasks − 1)`, each once, and returns when all are done.
    pub(crate) fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if n_tasks <= 1 || self.workers.is_empty() {
            return (0..n_tasks).for_each(task);
        }
        let _turn = self.turn.lock().unwrap_or_else(|e| e.into_inner());
        let finish = self.open(n_tasks, task);
        claim_tasks(&self.shared.next, n_tasks, task);
        drop(finish);
    }

    /// Calls `f` once on every thread of the pool, the caller's among them. A panic in `f` would leave the
    /// others waiting.
    pub(crate) fn on_every_thread(&self, f: &(dyn Fn() + Sync)) {
        let all_in = Barrier::new(self.n_threads());
        // Nobody can take a second task before everybody has one.
        self.run(self.n_threads(), &|_| {
            f();
            all_in.wait();
        });
    }

    /// Whether `len` is more scratch memory than any call before asked for.
    pub(crate) fn raise_scratch(&self, len: usize) -> bool {
        self.scratch.fetch_max(len, Ordering::Relaxed) < len
    }

    fn open<'a>(&'a self, n_tasks: usize, task: &'a (dyn Fn(usize) + Sync)) -> Finish<'a> {
        let mut state = self.shared.lock();
        self.shared.next.store(0, Ordering::Relaxed);
        state.epoch += 1;
        state.panicked = false;
        let call: *const (dyn Fn(usize) + Sync + 'a) = task;
        // SAFETY: only the lifetime changes; `Finish` ends the job before `'a` does.
        let call: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(call) };
        state.job = Some(Job { call, n_tasks });
        self.shared.epoch.store(state.epoch, Ordering::Release);
        drop(state);
        self.shared.woken.notify_all();
        Finish { shared: &self.shared }
    }
}

/// Ends the current job on drop, also when the caller's own task panicked.
struct Finish<'a> {
    shared: &'a Shared,
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        // No worker can enter once the job is gone, so `active` only falls from here.
        self.shared.lock().job = None;
        let mut spins = 0;
        while self.shared.active.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < SPINS_MAX { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let panicked = self.shared.lock().panicked;
        assert!(!panicked || std::thread::panicking(), "a task of the thread pool panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.epoch.store(usize::MAX, Ordering::Release);
        self.shared.woken.notify_all();
        for worker in self.workers.drain(..) {
            // A worker's panic was reported by the job that it happened in.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn work(&self) {
        let mut seen = 0;
        while let Some((epoch, job)) = self.next_job(seen) {
            seen = epoch;
            let Some(job) = job else { continue };
            // SAFETY: this worker is counted in `active`, so `Pool::run` still holds the closure.
            let task = unsafe { &*job.call };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                claim_tasks(&self.next, job.n_tasks, task);
            }));
            if result.is_err() {
                self.lock().panicked = true;
            }
            self.active.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an epoch other than `seen`; `None` when the pool closes.
    fn next_job(&self, seen: usize) -> Option<(usize, Option<Job>)> {
        for _ in 0..SPINS_MAX {
            if self.epoch.load(Ordering::Acquire) != seen {
                break;
            }
            std::hint::spin_loop();
        }
        let mut state = self.lock();
        while state.epoch == seen && !state.closing {
            state = self.woken.wait(state).unwrap_or_else(|e| e.into_inner());
        }
        if state.closing {
            return None;
        }
        if state.job.is_some() {
            self.active.fetch_add(1, Ordering::Relaxed);
        }
        Some((state.epoch, state.job))
    }
}

fn claim_tasks(next: &AtomicUsize, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
    loop {
        let i = next.fetch_add(1, Ordering::Relaxed);
        if i >= n_tasks {
            return;
        }
        task(i);
    }
}

/// A mutable slice that tasks write in disjoint pieces.
pub(crate) struct Shards<'a, T> {
    start: *mut T,
    len: usize,
    _borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: access is only through `piece`, whose callers promise disjoint ranges.
unsafe impl<T: Send> Sync for Shards<'_, T> {}

impl<'a, T> Shards<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Shards<'a, T> {
        Shards { start: slice.as_mut_ptr(), len: slice.len(), _borrow: std::marker::PhantomData }
    }

    /// The numbers `from..from + len`.
    ///
    /// # Safety
    /// No two pieces in use at the same time may overlap.
    #[expect(clippy::mut_from_ref, reason = "tasks write disjoint pieces of one slice")]
    pub(crate) unsafe fn piece(&self, from: usize, len: usize) -> &mut [T] {
        assert!(from + len <= self.len, "piece {from}+{len} of a slice of {}", self.len);
        // SAFETY: in bounds by the assertion; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }

    /// The address of number `from`, for kernels that write strided tiles.
    pub(crate) fn address(&self, from: usize) -> *mut T {
        assert!(from <= self.len);
        self.start.wrapping_add(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for n_threads in [1, 2, 5] {
            let pool = Pool::new(n_threads);
            for n_tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n_tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panicking_task_panics_the_caller_and_leaves_the_pool_usable() {
        let pool = Pool::new(2);
        let run = || pool.run(64, &|i| assert!(i != 40, "task {i}"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        let done = AtomicUsize::new(0);
        pool.run(10, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 10);
    }
}
