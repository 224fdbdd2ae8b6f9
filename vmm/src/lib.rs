//! The Cistern hypervisor as a library: [`options`] and [`config`] say what is wanted, [`machine`] puts it together,
//! [`supervisor`] runs it, [`api`] controls it meanwhile, and [`outcome`] is how it ends.

pub mod api;
pub mod boot;
pub mod bus;
pub mod config;
pub mod cpu;
pub mod device_set;
pub mod firmware;
pub mod guests;
pub mod heap;
pub mod host;
pub mod layout;
pub mod limits;
pub mod machine;
pub mod options;
pub mod outcome;
pub mod pool_options;
pub mod report;
pub mod signals;
pub mod size;
pub mod supervisor;
pub mod terminal;
pub mod timeline;
pub mod verdict;
pub mod vm;

mod device_loop;
mod dirty_log;
mod thread_id;
