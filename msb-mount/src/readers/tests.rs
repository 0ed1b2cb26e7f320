//! Threads that read requests from a socket, in place of the kernel's device.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::{BACKLOG, MOST_LATER, Readers, hold};

/// A limit for what takes no time.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy)]
enum Request {
    /// Ends when so many threads have one.
    Meet,
    /// Ends when the test says so.
    Hang,
    /// As that, after the thread has handed over.
    Long,
    /// Takes a tenth of a backlog.
    Brief,
    /// Concerns [`FILE`], and is put off.
    Later,
    /// Concerns [`FILE`].
    Open,
    /// Others may follow it without a read.
    First,
}

const FILE: u64 = 7;

struct Server {
    readers: Arc<Readers>,
    client: OwnedFd,
    threads: Vec<JoinHandle<()>>,
    /// Ends one hanging request.
    resume: Sender<()>,
    /// The thread of each request that has ended, and which one it was.
    ended: Receiver<(ThreadId, u8)>,
}

impl Server {
    /// A server whose threads all take part.
    fn start(count: usize) -> Self {
        let (client, device) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let readers = Readers::new(count).unwrap();
        readers.read_from(device.try_clone().unwrap()).unwrap();
        let device = Arc::new(device);
        let (resume, resumed) = channel();
        let (end, ended) = channel();
        let (resumed, meeting) = (Arc::new(Mutex::new(resumed)), Arc::new(Barrier::new(count)));
        let thread = |_| {
            let (readers, device) = (readers.clone(), device.clone());
            let (resumed, meeting, end) = (resumed.clone(), meeting.clone(), end.clone());
            std::thread::spawn(move || {
                let mut request = [0];
                while rustix::io::read(&device, &mut request).unwrap() > 0 {
                    let (end, request) = (end.clone(), request[0]);
                    let send = move || end.send((std::thread::current().id(), request)).unwrap();
                    match request {
                        4 => {
                            readers.serve_later(FILE, send);
                            continue;
                        }
                        6 => {
                            readers.serve_first(send);
                            continue;
                        }
                        _ => {}
                    }
                    readers.serve(|| {
                        match request {
                            0 => drop(meeting.wait()),
                            3 => busy(BACKLOG / 10),
                            5 => readers.catch_up_on(FILE),
                            hangs => {
                                if hangs == 2 {
                                    readers.hand_over();
                                }
                                resumed.lock().unwrap().recv().unwrap();
                            }
                        }
                        send();
                    });
                }
            })
        };
        let threads = (0..count).map(thread).collect();
        let server = Self { readers, client, threads, resume, ended };
        (0..count).for_each(|_| server.send(Request::Meet));
        for _ in 0..count {
            server.end_of_one();
        }
        server
    }

    fn send(&self, request: Request) {
        rustix::io::write(&self.client, &[request as u8]).unwrap();
    }

    fn end_of_one(&self) -> ThreadId {
        self.ended.recv_timeout(LIMIT).expect("no request ends").0
    }

    /// The order in which a thread serves requests that it finds together. The others hang.
    fn order_of(&self, requests: &[Request]) -> Vec<u8> {
        self.send(Request::Hang);
        while self.readers.serving.load(SeqCst) < self.threads.len() {
            std::thread::yield_now();
        }
        // As after a request that came soon. The thread does not poll now, so nothing changes that on a busy host.
        while hold(&self.readers.window).length().is_zero() {
            hold(&self.readers.window).arrived(Duration::ZERO);
        }
        requests.iter().for_each(|request| self.send(*request));
        self.resume.send(()).unwrap();
        self.end_of_one();
        requests.iter().map(|_| self.ended.recv_timeout(LIMIT).expect("a request is put off for ever").1).collect()
    }

    /// Waits until one thread reads and the others are parked.
    fn settle(&self) {
        let limit = Instant::now() + LIMIT;
        while self.readers.active.load(SeqCst) > 1 || self.readers.serving.load(SeqCst) > 0 {
            assert!(Instant::now() < limit, "the threads are not parked");
            std::thread::yield_now();
        }
    }

    /// From now on the timer never ends.
    fn stop_timer(&self) {
        // It runs from the requests before.
        while self.readers.is_timer_set.load(SeqCst) {
            std::thread::yield_now();
        }
        self.readers.is_timer_set.store(true, SeqCst);
        let never = super::Itimerspec { it_interval: super::Timespec::default(), it_value: super::Timespec::default() };
        let none = rustix::time::TimerfdTimerFlags::empty();
        rustix::time::timerfd_settime(&self.readers.timer, none, &never).unwrap();
    }

    /// Ends the device, and with it all threads.
    fn stop(self) {
        drop(self.client);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

/// Takes time on a processor.
fn busy(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn all_threads_but_one_are_parked_and_end_with_the_device() {
    for count in [2, 3, 8] {
        let server = Server::start(count);
        server.settle();
        server.stop();
    }
}

#[test]
fn a_request_does_not_wait_for_one_that_hangs() {
    let server = Server::start(3);
    server.settle();
    for hanging in 1..3 {
        server.send(Request::Hang);
        for _ in 0..hanging {
            server.send(Request::Brief);
            server.end_of_one();
        }
    }
    // The threads of the two take part again.
    (0..2).for_each(|_| server.resume.send(()).unwrap());
    for _ in 0..2 {
        server.end_of_one();
    }
    server.settle();
    server.stop();
}

#[test]
fn a_long_request_is_handed_over_without_the_timer() {
    let server = Server::start(2);
    server.settle();
    server.stop_timer();
    server.send(Request::Long);
    server.send(Request::Brief);
    server.end_of_one();
    server.resume.send(()).unwrap();
    server.end_of_one();
    server.settle();
    server.stop();
}

#[test]
fn requests_that_queue_up_are_read_by_another_thread_too() {
    let server = Server::start(2);
    server.settle();
    server.stop_timer();
    let limit = Instant::now() + LIMIT;
    let mut threads = HashSet::new();
    (0..50).for_each(|_| server.send(Request::Brief));
    while threads.len() < 2 {
        assert!(Instant::now() < limit, "one thread has read them all");
        threads.insert(server.end_of_one());
        server.send(Request::Brief);
    }
    server.stop();
}

#[test]
fn what_is_put_off_waits_for_the_next_answer_only() {
    use Request::{Brief, First, Later, Open};
    let server = Server::start(1);
    assert_eq!(server.order_of(&[Later, Brief, Brief]), [3, 4, 3]);
    assert_eq!(server.order_of(&[Later, Later, Brief]), [3, 4, 4]);
    // The thread sleeps after these.
    assert_eq!(server.order_of(&[Later, Later]), [4, 4]);
    assert_eq!(server.order_of(&[Later, Open]), [4, 5]);
    assert_eq!(server.order_of(&[Later, First]), [6, 4]);
    // So many are not put off.
    let mut many = vec![Later; MOST_LATER + 1];
    many.push(Brief);
    let mut order = vec![4; MOST_LATER];
    order.extend([3, 4]);
    assert_eq!(server.order_of(&many), order);
    server.stop();
}

#[test]
fn nothing_is_put_off_if_another_thread_may_take_the_next_request() {
    let server = Server::start(2);
    server.settle();
    server.send(Request::Hang);
    // The timer calls the other thread for this one, so that both take part when it ends.
    assert_eq!(server.order_of(&[Request::Later, Request::Brief]), [4, 3]);
    server.resume.send(()).unwrap();
    server.end_of_one();
    server.stop();
}
