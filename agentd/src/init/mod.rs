//! The image's init as PID 1: which program it is, the handoff to it, when it is usable, and how it is asked to power off. What differs
//! between init systems is decided by the table in [`msb::vm::inits`]; the functions behind its variants are here.

mod children;
pub mod find;
pub mod handoff;
mod inittab;
mod pid_1;
pub mod power_off;
mod services;
pub mod systemd;
pub mod trace;
mod usable;
