//! What sharing costs guests that work: walks of a pool that shares beside those of one that does not, by turns.

use std::thread;
use std::time::Duration;

use cistern_tests::ksm::Ksm;
use cistern_tests::sharers::Guests;
use serde_json::Value;

/// Two of these are as many as there are CPUs here.
const GUESTS: usize = 2;
const PROGRAM: &str = "fill:56M,zero=20,dup=47,text=33,seed=SEED;repeat:1000000,(walk:56M,secs=0.5)";
const MEMORY: &str = "64M";

/// How long a pool's turn is.
const TURN: Duration = Duration::from_secs(3);

/// See the top of this file.
pub fn compare(rounds: usize) {
    println!("\nread walks over what is shared, touches/s of {GUESTS} guests; {rounds} turns each: {PROGRAM}");
    let _ksm = Ksm::hold();
    let [mut off, mut on] = [start(), start()];
    off.signal(libc::SIGSTOP);
    on.guests.share();
    on.guests.settle(None);
    on.signal(libc::SIGSTOP);
    let (mut rates_off, mut rates_on) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // Whoever is first in one is second in the next.
        let mut turns: [(&mut Pool, &mut Vec<f64>); 2] = [(&mut off, &mut rates_off), (&mut on, &mut rates_on)];
        if round % 2 == 1 {
            turns.reverse();
        }
        for (pool, rates) in turns {
            rates.extend(pool.turn());
        }
    }
    on.signal(libc::SIGCONT);
    off.signal(libc::SIGCONT);
    let memory = on.guests.memory();
    println!(
        "  shared while it walked: {} MiB of {} MiB touched take {} MiB; scanners {:.2} s of CPU in all",
        memory.merged_bytes >> 20,
        on.guests.touched_bytes() >> 20,
        memory.proportional_bytes >> 20,
        on.guests.scanners_cpu().as_secs_f64()
    );
    let (off, on) = (Summary::of(rates_off), Summary::of(rates_on));
    println!(
        "  off {off}\n  on  {on}\n  on/off: median {:.3}, best tenth {:.3}; goal >= 0.99",
        on.median / off.median,
        on.best / off.best
    );
}

struct Pool {
    guests: Guests,
}

fn start() -> Pool {
    let mut guests = Guests::new();
    (0..GUESTS)
        .for_each(|number| guests.start_probe(&PROGRAM.replace("SEED", &number.to_string()), &["--memory", MEMORY]));
    for member in &mut guests.members {
        member.running.wait_for_phase("walk");
    }
    guests.give_way();
    Pool { guests }
}

impl Pool {
    /// Runs for a while; the rates of the walks that fell into it as a whole.
    fn turn(&mut self) -> Vec<f64> {
        self.signal(libc::SIGCONT);
        self.guests.members.iter_mut().for_each(|member| member.running.catch_up());
        thread::sleep(TURN);
        self.signal(libc::SIGSTOP);
        let mut rates = Vec::new();
        for member in &mut self.guests.members {
            let lines = member.running.new_lines();
            let walks: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
            assert!(walks.iter().all(|walk| walk["bad"] == 0), "{walks:?}");
            // The first was under way before.
            rates.extend(walks.iter().skip(1).filter_map(|walk| walk["touches_per_s"].as_f64()));
        }
        rates
    }

    fn signal(&self, signal: i32) {
        self.guests.members.iter().for_each(|member| member.running.signal(signal));
    }
}

struct Summary {
    count: usize,
    median: f64,
    best: f64,
}

impl Summary {
    fn of(mut rates: Vec<f64>) -> Self {
        rates.sort_by(f64::total_cmp);
        assert!(!rates.is_empty(), "nobody has walked");
        Self { count: rates.len(), median: rates[rates.len() / 2], best: rates[rates.len() - 1 - rates.len() / 10] }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "median {:.0}, best tenth from {:.0} ({} walks)", self.median, self.best, self.count)
    }
}
