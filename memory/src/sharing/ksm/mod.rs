//! KSM, the kernel's page merging: what it says of the host ([`KsmHost`]) and of this process ([`KsmProcess`]), and driving
//! it ([`Tuner`]).
//!
//! Its settings are the host's. They are changed only by a tuner, which is made only where the user asked for one; it is
//! one at a time, and what it found is put back when it leaves, or by the next leader of its pool if it was killed
//! (`wheel`). How fast ksmd goes is decided by `regulator`, from what waits as `gathering` has it.

mod error;
mod folder;
mod gathering;
mod host;
mod ksmd;
mod process;
mod record;
mod regulator;
mod tuner;
#[cfg(test)]
pub(crate) mod turn;
mod wheel;

pub use error::KsmError;
pub use folder::Setting;
pub use host::KsmHost;
pub use ksmd::Ksmd;
pub use process::KsmProcess;
pub use regulator::Pace;
pub use tuner::{KsmState, Tuner, TunerConfig, TunerState};
pub use wheel::PutBack;
