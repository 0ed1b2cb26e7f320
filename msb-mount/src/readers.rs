//! Which thread reads the next request, and whether it polls for it before it sleeps.
//!
//! The crate has several threads that read requests from one device. Were all of them to sleep there, each request would wake another
//! one, and that costs more than most requests do. So one thread reads, and polls for a moment before it sleeps ([`window`]); the others
//! are parked. Another one is called to read as well:
//!
//! - At once by a request that is known to take long ([`Readers::hand_over`]).
//! - By a timer, when no thread has been free to read and none has finished a request for a [`TICK`]. It runs only while there are
//!   requests. Go's scheduler looks after threads in long system calls in the same way (`sysmon` in `runtime/proc.go`).
//! - When requests have been waiting for each finished one for a [`BACKLOG`], as many clients cause it.
//!
//! A thread that finds no further request parks itself if another one is free to read. So one always is, or the timer runs.
//!
//! The time that it takes (two processors; a warm tar of 5354 files; medians of 7; every process with real-time priority, so that other
//! work on the machine does not count; the kernel's overlayfs takes 0.16 s):
//!
//! | | tar, s | processor time of the server, s | sleeps of its threads |
//! | --- | --- | --- | --- |
//! | two threads that sleep in read(2) | 0.32 | 0.14 | 8700 |
//! | one that sleeps there, one parked | 0.32 | 0.13 | 5300 |
//! | it polls for at most 20 µs | 0.26 | 0.14 | 2600 |
//! | 40 µs | 0.21 | 0.14 | 710 |
//! | 100 µs | 0.19 | 0.14 | 330 |
//!
//! With the programs bound to one processor it is 0.17 s in place of 0.24 s (the kernel 0.12 s). 3000 new files on a tmpfs take 0.35 s in
//! place of 0.57 s, and their removal 0.16 s in place of 0.21 s: each takes five and three requests, and the client sleeps in four and two.
//! Where other processes take both processors, the client runs only after the server sleeps, polls fail, and the window stays closed. With
//! everything on one processor two threads that sleep are fastest (10k files in 0.75 s; with two processors and polling 1.2 s).
//!
//! A release is put off ([`Readers::serve_later`]): no client waits for it, but the next request would wait for the thread that is busy
//! with it. It is done when the next request was answered, while the client wakes up, or before the thread sleeps. A warm tar takes
//! 0.96 of the time, new files 0.92 (with two system calls fewer for each), and their removal 0.95.
//!
//! A thread takes part from its first request on, and nothing is polled or parked before all threads do: the last one that reads must be
//! one whose end is noticed here, so that the parked ones end too.

#[cfg(test)]
mod tests;
mod window;

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

use crate::lock::hold;
use window::Window;

/// The period of the timer. When all threads are busy, another one is called after one to two of these.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
/// How long there may be further requests before another thread reads them too.
const BACKLOG: Duration = Duration::from_micros(250);
/// One look at the device that takes longer was interrupted: another process has run.
const INTERRUPTED: Duration = Duration::from_micros(500);
/// While nothing is polled for, one of so many requests is looked at. Looking at all took 8 to 12 % of the time of small requests.
const SAMPLE: u32 = 4;
/// The most work that a thread puts off.
const MOST_LATER: usize = 8;

/// The threads that read requests.
#[derive(Debug)]
pub(crate) struct Readers {
    /// How many threads there are.
    count: usize,
    /// Where requests come from. Nothing is polled or parked before it is set.
    device: OnceLock<OwnedFd>,
    /// How many threads have had a request.
    known: AtomicUsize,
    /// How many threads are not parked.
    active: AtomicUsize,
    /// How many of the active threads have a request.
    serving: AtomicUsize,
    /// How many requests were finished.
    finished: AtomicU64,
    window: Mutex<Window>,
    parked: Mutex<Parked>,
    called: Condvar,
    timer: OwnedFd,
    is_timer_set: AtomicBool,
}

#[derive(Debug, Default)]
struct Parked {
    count: usize,
    /// How many of them are called, and count as active already.
    calls: usize,
    /// A thread has ended, so all do.
    is_over: bool,
}

/// What a thread knows of its own requests.
struct Reader {
    readers: Arc<Readers>,
    /// When it began to wait for a request, if no other thread did.
    waits_since: Option<Instant>,
    /// Since when there have been further requests.
    backlog_since: Option<Instant>,
    /// How many requests it has finished while nothing was polled for.
    unpolled: u32,
    /// Work that was put off, each with the id of what it concerns.
    later: Vec<(u64, Box<dyn FnOnce()>)>,
}

thread_local! {
    static READER: RefCell<Option<Reader>> = const { RefCell::new(None) };
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.readers.end();
    }
}

impl Readers {
    /// For so many threads.
    ///
    /// # Errors
    /// That of making a timer.
    pub(crate) fn new(count: usize) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            count,
            device: OnceLock::new(),
            known: AtomicUsize::new(0),
            active: AtomicUsize::new(count),
            serving: AtomicUsize::new(0),
            finished: AtomicU64::new(0),
            window: Mutex::default(),
            parked: Mutex::default(),
            called: Condvar::new(),
            timer: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?,
            is_timer_set: AtomicBool::new(false),
        }))
    }

    /// Requests come from this device.
    ///
    /// # Errors
    /// That of making a thread.
    pub(crate) fn read_from(self: &Arc<Self>, device: OwnedFd) -> io::Result<()> {
        if self.count > 1 {
            let watched = self.clone();
            std::thread::Builder::new().name("watch".into()).spawn(move || watched.watch())?;
        }
        let _ = self.device.set(device);
        Ok(())
    }

    /// Serves a request of this thread, and returns when the thread should read the next one.
    pub(crate) fn serve<T>(self: &Arc<Self>, serve: impl FnOnce() -> T) -> T {
        if self.device.get().is_none() {
            return serve();
        }
        self.begin();
        let served = serve();
        catch_up();
        self.finish(true);
        served
    }

    /// Serves a request that no client waits for, once the next one was answered. `id`: what it concerns.
    pub(crate) fn serve_later(self: &Arc<Self>, id: u64, serve: impl FnOnce() + 'static) {
        // The thread sleeps after this request, or another one may take the next.
        let is_alone = self.known.load(SeqCst) >= self.count && self.active.load(SeqCst) == 1;
        if !is_alone || hold(&self.window).length().is_zero() {
            return self.serve(serve);
        }
        self.begin();
        let is_full = READER.with_borrow_mut(|reader| {
            let Some(Reader { later, .. }) = reader else { return false };
            later.push((id, Box::new(serve)));
            later.len() >= MOST_LATER
        });
        if is_full {
            catch_up();
        }
        if !self.finish(false) {
            self.serving.fetch_add(1, SeqCst);
            self.set_timer();
            catch_up();
            self.finished.fetch_add(1, SeqCst);
            self.serving.fetch_sub(1, SeqCst);
        }
    }

    /// Does what this thread has put off, if some of it concerns `id`.
    pub(crate) fn catch_up_on(&self, id: u64) {
        let concerns = |reader: &Reader| reader.later.iter().any(|(of, _)| *of == id);
        if READER.with_borrow(|reader| reader.as_ref().is_some_and(concerns)) {
            catch_up();
        }
    }

    /// As [`Self::serve`], for one that takes no time and is followed by others without a read. This thread is not parked.
    pub(crate) fn serve_first<T>(self: &Arc<Self>, serve: impl FnOnce() -> T) -> T {
        if self.device.get().is_none() {
            return serve();
        }
        self.begin();
        let served = serve();
        catch_up();
        self.finish(false);
        served
    }

    /// The request of this thread takes long, so another one reads the next.
    pub(crate) fn hand_over(&self) {
        if self.free() == 0 {
            self.call();
        }
    }

    /// How many threads read or are about to.
    fn free(&self) -> usize {
        // A thread that has ended in a request stays in one.
        self.active.load(SeqCst).saturating_sub(self.serving.load(SeqCst))
    }

    fn begin(self: &Arc<Self>) {
        self.serving.fetch_add(1, SeqCst);
        if !self.is_timer_set.load(SeqCst) {
            self.set_timer();
        }
        READER.with_borrow_mut(|reader| match reader {
            Some(reader) => {
                if let Some(since) = reader.waits_since.take() {
                    hold(&self.window).arrived(since.elapsed());
                }
            }
            None => {
                let readers = self.clone();
                *reader =
                    Some(Reader { readers, waits_since: None, backlog_since: None, unpolled: 0, later: Vec::new() });
                self.known.fetch_add(1, SeqCst);
            }
        });
    }

    /// Returns whether there is a next request already, which this thread will take.
    fn finish(&self, may_park: bool) -> bool {
        self.finished.fetch_add(1, SeqCst);
        self.serving.fetch_sub(1, SeqCst);
        let Some(device) = self.device.get() else { return false };
        if self.known.load(SeqCst) < self.count {
            return false;
        }
        READER.with_borrow_mut(|reader| {
            let Some(reader) = reader else { return false };
            if hold(&self.window).length().is_zero() && self.free() == 1 {
                reader.unpolled = reader.unpolled.wrapping_add(1);
                if !reader.unpolled.is_multiple_of(SAMPLE) {
                    return false;
                }
            }
            if is_ready(device) {
                let since = *reader.backlog_since.get_or_insert_with(Instant::now);
                if since.elapsed() > BACKLOG {
                    reader.backlog_since = None;
                    return !self.call();
                }
                return true;
            }
            reader.backlog_since = None;
            if self.free() > 1 {
                if may_park {
                    self.park();
                }
                return false;
            }
            let since = Instant::now();
            reader.waits_since = Some(since);
            self.poll(device, since)
        })
    }

    /// Polls for the next request, for the window's length. Returns whether there is one.
    fn poll(&self, device: &OwnedFd, since: Instant) -> bool {
        let length = hold(&self.window).length();
        let mut last = Duration::ZERO;
        while last < length {
            let is_ready = is_ready(device);
            let now = since.elapsed();
            if now.saturating_sub(last) > INTERRUPTED {
                hold(&self.window).lost_processor();
            }
            if is_ready {
                return true;
            }
            last = now;
        }
        false
    }

    /// Sleeps until another thread is wanted to read, unless none but this one is free.
    fn park(&self) {
        let mut parked = hold(&self.parked);
        // First: a request that begins after the check sees that this thread does not read.
        self.active.fetch_sub(1, SeqCst);
        if self.free() == 0 || parked.is_over {
            self.active.fetch_add(1, SeqCst);
            return;
        }
        parked.count += 1;
        while parked.calls == 0 && !parked.is_over {
            parked = self.called.wait(parked).unwrap_or_else(PoisonError::into_inner);
        }
        parked.calls = parked.calls.saturating_sub(1);
        parked.count -= 1;
    }

    /// Has a parked thread read. Returns whether there is one.
    fn call(&self) -> bool {
        let mut parked = hold(&self.parked);
        let is_one = parked.count > parked.calls;
        if is_one {
            parked.calls += 1;
            self.active.fetch_add(1, SeqCst);
            self.called.notify_one();
        }
        is_one
    }

    /// Ends the parked threads, and the one that watches.
    fn end(&self) {
        hold(&self.parked).is_over = true;
        self.called.notify_all();
        self.is_timer_set.store(true, SeqCst);
        self.start_timer();
    }

    fn set_timer(&self) {
        if !self.is_timer_set.swap(true, SeqCst) {
            self.start_timer();
        }
    }

    fn start_timer(&self) {
        let once = Itimerspec { it_interval: Timespec::default(), it_value: TICK };
        // It fails for a wrong time only.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }

    /// Calls a thread when none is free to read for long.
    fn watch(&self) {
        let mut last = 0;
        while rustix::io::read(&self.timer, &mut [0; 8]).is_ok() {
            if hold(&self.parked).is_over {
                return;
            }
            let finished = self.finished.load(SeqCst);
            if finished != last {
                last = finished;
                self.start_timer();
                continue;
            }
            if self.free() == 0 {
                self.call();
            }
            self.is_timer_set.store(false, SeqCst);
            // A request that has begun before this has set no timer.
            if self.free() == 0 && hold(&self.parked).count > 0 {
                self.set_timer();
            }
        }
    }
}

/// Does what this thread has put off.
fn catch_up() {
    let later = READER.with_borrow_mut(|reader| reader.as_mut().map(|reader| std::mem::take(&mut reader.later)));
    later.into_iter().flatten().for_each(|(_, serve)| serve());
}

/// Whether a read would return at once: there is a request, or the mount is gone.
fn is_ready(device: &OwnedFd) -> bool {
    let now = Timespec::default();
    let mut polled = [PollFd::new(device, PollFlags::IN)];
    !matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(0))
}
