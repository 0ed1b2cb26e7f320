//! Fetches the layers of an image that the store lacks, several at a time. It waits for a layer that another pull is fetching.
//! Complete layers are published while the rest is fetched.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use msb::store::checksums;

use crate::budget::Budget;
use crate::chunks::is_hangup;
use crate::decompressor::Decompressor;
use crate::image::{ImageLayer, Origin};
use crate::layer::fetch_and_unpack;
use crate::progress::Progress;
use crate::stack::Stack;
use crate::store::{LayerLock, Store};
use crate::unpack::Unpacked;

/// How many layers are fetched at a time.
const AT_ONCE: usize = 4;
/// How long complete layers may wait to be published. Each time costs a sync of the file system.
const INTERVAL: Duration = Duration::from_secs(1);

/// Fetches the layers of an image from `origin` into `store`.
pub(crate) struct Fetcher<'a> {
    pub(crate) store: &'a Store,
    pub(crate) origin: &'a dyn Origin,
    pub(crate) progress: &'a Progress,
    pub(crate) budget: &'a Budget,
}

/// A layer that this pull alone fetches.
type Claim<'a> = (&'a ImageLayer, Mutex<Option<LayerLock>>);

/// The state that the threads share.
struct Shared<'a> {
    stack: Stack<'a>,
    errors: Vec<anyhow::Error>,
    /// How many threads are fetching.
    workers: usize,
}

impl<'a> Fetcher<'a> {
    /// Fetches what the store lacks of `layers`, bottom first.
    ///
    /// # Errors
    /// The first error of a layer. The complete layers are in the store.
    pub(crate) fn fetch(&self, layers: &'a [ImageLayer]) -> anyhow::Result<Stack<'a>> {
        let mut stack = Stack::new(self.store, layers, self.budget);
        loop {
            let missing = stack.missing();
            let Some(&first) = missing.first() else { return Ok(stack) };
            let mut claims = Vec::new();
            for layer in missing {
                if let Some(lock) = self.store.try_lock_layer(&layer.diff_id)? {
                    claims.push((layer, Mutex::new(Some(lock))));
                }
            }
            if claims.is_empty() {
                // Two pulls that wait for each other's layers would wait for ever, so nobody waits with a lock.
                stack.publish()?;
                stack.unlock();
                self.progress.wait_for(&first.diff_id);
                claims.push((first, Mutex::new(Some(self.store.lock_layer(&first.diff_id)?))));
            }
            // The other pull may have ended before the lock was taken.
            claims.retain(|(layer, _)| stack.lacks(layer));
            stack = self.fetch_claimed(stack, &claims)?;
        }
    }

    fn fetch_claimed(&self, stack: Stack<'a>, claims: &[Claim<'a>]) -> anyhow::Result<Stack<'a>> {
        // A manifest may have any sizes.
        self.progress.expect(claims.iter().fold(0, |sum: u64, (layer, _)| sum.saturating_add(layer.blob.size)));
        let workers = AT_ONCE.min(claims.len());
        let shared = Mutex::new(Shared { stack, errors: Vec::new(), workers });
        let (changed, next, stop) = (Condvar::new(), AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            if workers > 0 {
                scope.spawn(|| {
                    if let Err(error) = self.publish_meanwhile(&shared, &changed) {
                        stop.store(true, Ordering::Relaxed);
                        lock(&shared).errors.push(error);
                    }
                });
            }
            for _ in 0..workers {
                scope.spawn(|| {
                    let _ended = Ended { shared: &shared, changed: &changed };
                    let mut decompressor = Decompressor::default();
                    while let Some(claim) = claims.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = self.fetch_one(claim, &mut decompressor, &shared, &stop) {
                            stop.store(true, Ordering::Relaxed);
                            lock(&shared).errors.push(error);
                            return;
                        }
                        changed.notify_all();
                    }
                });
            }
        });
        let Shared { mut stack, errors, .. } = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        match errors.into_iter().reduce(|first, next| if is_hangup(&first) { next } else { first }) {
            Some(error) => {
                // The next pull continues from the complete layers. An error of publishing them is less useful than the first.
                let _ = stack.publish();
                Err(error)
            }
            None => Ok(stack),
        }
    }

    fn fetch_one(
        &self,
        (layer, claim): &Claim<'a>,
        decompressor: &mut Decompressor,
        shared: &Mutex<Shared<'a>>,
        stop: &AtomicBool,
    ) -> anyhow::Result<()> {
        let (scratch, unpacked) = self.unpack_one(layer, decompressor, stop)?;
        let held = claim.lock().unwrap_or_else(PoisonError::into_inner).take();
        lock(shared).stack.add(&layer.diff_id, scratch, unpacked, held)
    }

    fn unpack_one(
        &self,
        layer: &ImageLayer,
        decompressor: &mut Decompressor,
        stop: &AtomicBool,
    ) -> anyhow::Result<(PathBuf, Unpacked)> {
        let scratch = self.store.scratch(layer.diff_id.hex());
        DirBuilder::new().mode(0o700).create(&scratch).with_context(|| format!("{scratch:?}"))?;
        let bar = self.progress.layer(&layer.diff_id, layer.blob.size);
        let mut unpacked = fetch_and_unpack(self.origin, layer, decompressor, &scratch, &bar, self.budget, stop)?;
        // Otherwise the layers below decide some attributes, and [`Stack`] writes the checksums after that.
        if unpacked.dependent.is_empty() {
            let contents = std::mem::take(&mut unpacked.contents);
            checksums::write(&scratch, &contents, &checksums::beside(&scratch)).context("checksums")?;
        }
        Ok((scratch, unpacked))
    }

    /// Publishes layers from time to time, until all of them are fetched.
    fn publish_meanwhile(&self, shared: &Mutex<Shared<'a>>, changed: &Condvar) -> anyhow::Result<()> {
        let mut last = Instant::now();
        loop {
            let guard = lock(shared);
            let waiting = |shared: &mut Shared| shared.workers > 0 && !shared.stack.has_unpublished();
            let guard = changed.wait_while(guard, waiting).unwrap_or_else(PoisonError::into_inner);
            let left = INTERVAL.saturating_sub(last.elapsed());
            let (mut guard, _) = changed
                .wait_timeout_while(guard, left, |shared| shared.workers > 0)
                .unwrap_or_else(PoisonError::into_inner);
            if guard.workers == 0 {
                return Ok(());
            }
            let batch = guard.stack.take_unpublished();
            drop(guard);
            // The mutex is free meanwhile, because a sync takes long.
            self.store.sync()?;
            lock(shared).stack.place(batch)?;
            last = Instant::now();
        }
    }
}

fn lock<'m, 'a>(shared: &'m Mutex<Shared<'a>>) -> MutexGuard<'m, Shared<'a>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reports the end of a thread that fetches, also if it panics.
struct Ended<'m, 'a> {
    shared: &'m Mutex<Shared<'a>>,
    changed: &'m Condvar,
}

impl Drop for Ended<'_, '_> {
    fn drop(&mut self) {
        lock(self.shared).workers -= 1;
        self.changed.notify_all();
    }
}
