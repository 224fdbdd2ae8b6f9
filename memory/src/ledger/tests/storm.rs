//! Many who write and read at once: nobody reads half of anything.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use super::*;

const STORM: Duration = Duration::from_millis(1500);

#[test]
fn nobody_reads_half_a_record() {
    let pool = Pool::new();
    let members: Vec<_> = (0..4).map(|number| pool.join(&format!("vm{number}"))).collect();
    let ids: Vec<_> = members.iter().map(Membership::id).collect();
    let mut leadership = members[0].try_lead().unwrap();
    members.iter().for_each(|member| member.publish(&report(0)).unwrap());
    leadership.publish(&round(0, &ids)).unwrap();
    let done = AtomicBool::new(false);
    let (read, missed) = (AtomicU64::new(0), AtomicU64::new(0));
    // The one that joins now; all before it are gone.
    let guest = AtomicU64::new(0);
    let going = || !done.load(Ordering::Relaxed);
    thread::scope(|scope| {
        for member in &members {
            scope.spawn(|| (0..).take_while(|_| going()).for_each(|number| member.publish(&report(number)).unwrap()));
            scope.spawn(|| {
                while going() {
                    let Some(standing) = member.orders() else { continue };
                    let number = standing.orders.grant_bytes;
                    assert_eq!((standing.orders, standing.free_bytes), (orders(number), -(number as i64)));
                    assert_eq!(standing.level as u64, number % 5);
                    read.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            (0..).take_while(|_| going()).for_each(|number| leadership.publish(&round(number, &ids)).unwrap());
        });
        // Comes and goes in the slot behind them.
        scope.spawn(|| {
            for number in (0..).take_while(|_| going()) {
                guest.store(number, Ordering::SeqCst);
                drop(pool.join(&format!("guest{number}")));
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while going() {
                    let oldest = guest.load(Ordering::SeqCst);
                    let view = pool.read();
                    let there = view.members.iter().filter(|member| member.id.slot < 4).count() as u64;
                    missed.fetch_add(4 - there, Ordering::Relaxed);
                    for member in &view.members {
                        let guest = member.identity.name.strip_prefix("guest").map(|number| number.parse::<u64>());
                        let is_guest = guest.is_some();
                        assert_eq!(is_guest, member.id.slot == 4, "{member:?}");
                        assert!(
                            guest.is_none_or(|number| number.unwrap() >= oldest),
                            "it was gone already: {member:?}"
                        );
                        let number = member.report.charge_bytes;
                        let expected = if is_guest {
                            Report { time_ns: member.report.time_ns, ..Report::default() }
                        } else {
                            report(number)
                        };
                        assert_eq!(member.report, expected);
                        assert_eq!(member.orders, member.grant_bytes.map(orders));
                        read.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let started = Instant::now();
        while started.elapsed() < STORM {
            thread::sleep(Duration::from_millis(10));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(read.load(Ordering::Relaxed) > 1000, "{read:?}");
    assert!(1000 * missed.load(Ordering::Relaxed) < read.load(Ordering::Relaxed), "{missed:?} of {read:?}");
    assert_eq!(pool.read().corrupt_slots, 0);
}
