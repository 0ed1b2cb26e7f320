//! The front of the tools. msb starts a tool by the word after it, as git does. msb-run makes a VM for one command: it starts
//! msb-pull, msb-patch, msb-boot, msb-exec and msb-rm, and hands records from one to the next. What a flag means is decided by the
//! tool that it is for. msb-fork starts copies of a running VM.
//!
//! Imports run one way: from [`front`] and [`run`] to the parts of a run, and from them to [`programs`].

pub mod args;
pub mod caretaker;
pub mod children;
pub mod commit;
pub mod docker;
pub mod doctor;
pub mod fork;
pub mod front;
pub mod page;
pub mod passed;
pub mod plan;
pub mod programs;
pub mod run;
pub mod snapshot;
pub mod stages;
pub mod step;
