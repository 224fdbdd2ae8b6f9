//! What guests of overcommitted hosts do: most idle, some work, and their memory holds a bit of everything.

use cistern_memory::PAGE_SIZE;
use cistern_tests::paged::MIB;

use crate::scenario::Plan;

/// A mix of guests.
pub struct Mix {
    /// What it is called.
    pub name: &'static str,
    /// What each guest is told it has; it fills half of that.
    pub memory_mib: u64,
    /// How many of ten idle; the others work.
    idle_of_ten: u64,
    /// What pages hold, in percent.
    kinds: &'static str,
    /// How many guests are looked around first with ours, as what fits came near to it before. It is the same at any scale: the
    /// budget grows alike.
    pub near: u64,
}

/// The one that all are measured by.
pub const USUAL: Mix =
    Mix { name: "usual", memory_mib: 64, idle_of_ten: 7, kinds: "zero=15,dup=20,text=45,random=20", near: 64 };

/// Others, each apart from it in one thing.
pub const OTHERS: [Mix; 6] = [
    Mix { name: "all-idle", idle_of_ten: 10, near: 120, ..USUAL },
    Mix { name: "most-work", idle_of_ten: 3, near: 30, ..USUAL },
    Mix { name: "incompressible", kinds: "zero=5,dup=5,text=10,random=80", ..USUAL },
    Mix { name: "alike", kinds: "zero=15,dup=65,text=15,random=5", ..USUAL },
    // A VMM is as large whatever its guest has.
    Mix { name: "larger", memory_mib: 128, near: 36, ..USUAL },
    Mix { name: "largest", memory_mib: 256, near: 21, ..USUAL },
];

impl Mix {
    /// What each guest compares in the end, in the short version.
    pub const fn filled_pages(&self, plan: &Plan) -> u64 {
        self.filled_mib() * plan.scale * MIB / PAGE_SIZE
    }

    const fn filled_mib(&self) -> u64 {
        self.memory_mib / 2
    }

    /// The guests, as `cistern density` is told of them. In the short version they end.
    pub fn programs(&self, plan: &Plan) -> Vec<String> {
        let fill = format!("fill:{},{},seed={{n}}", plan.size(self.filled_mib()), self.kinds);
        let half = plan.size(self.filled_mib() / 2);
        let (idle, active) = if plan.is_short {
            let idle = format!("{fill};idle:3,touch=1M,every=1;verify");
            (idle, format!("{fill};walk:{half},secs=2,write=20;verify"))
        } else {
            let idle = format!("{fill};repeat:forever,(idle:3600,touch=1M,every=2)");
            // Few lines: an exit a byte, they would take most of its CPU time.
            (idle, format!("{fill};repeat:forever,(walk:{half},touches=10000,write=20;idle:1)"))
        };
        let probes = [(self.idle_of_ten, idle), (10 - self.idle_of_ten, active)];
        let probes = probes.into_iter().filter(|(weight, _)| *weight > 0);
        probes.flat_map(|(weight, program)| ["--probe".to_owned(), format!("{weight}:{program}")]).collect()
    }
}
