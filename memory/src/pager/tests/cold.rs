//! Pages taken without need.

use super::*;

#[test]
fn pages_that_somebody_misses_are_not_stored() {
    for method in methods() {
        let guest = Guest::new(&[0..16 * MIB], in_memory(method));
        guest.pager.arm().unwrap();
        let content = |gfn: u64| samples::page(Kind::Text, gfn as u32);
        guest.soon(|| (0..2048).for_each(|gfn| guest.write(gfn, &content(gfn))));
        guest.at_rest();
        let clusters = guest.pager.set_aside(500).unwrap();
        let aside = guest.at_rest().pages.aside;
        assert!((500..516).contains(&aside), "{aside}");
        assert!(clusters.iter().all(|gfns| gfns.end - gfns.start == 16 && gfns.start % 16 == 0), "{clusters:?}");
        // The guest works with the first quarter of its memory.
        guest.soon(|| (0..512).for_each(|gfn| assert_eq!(guest.read(gfn), content(gfn))));
        let cold = guest.at_rest().pages.aside;
        assert!(cold < aside, "some were in the first quarter");
        let stored = guest.pager.store_aside(&clusters, 100).unwrap();
        assert!((90..=116).contains(&stored), "{stored}");
        guest.pager.store_aside(&clusters, u64::MAX).unwrap();
        // Nothing of what it works with has left; the rest is as it was.
        guest.soon(|| (0..512).for_each(|gfn| assert_eq!(guest.read(gfn), content(gfn))));
        assert_eq!(guest.at_rest().refaults.compressed.pages, 0);
        guest.soon(|| (512..2048).for_each(|gfn| assert_eq!(guest.read(gfn), content(gfn))));
        assert!(guest.at_rest().refaults.compressed.pages > 0);
        guest.check_no_failure();
    }
}

#[test]
fn an_open_vm_and_one_that_holds_nothing_give_nothing() {
    let guest = Guest::new(&[0..16 * MIB], PagerConfig::default());
    assert_eq!(guest.pager.set_aside(100).unwrap(), []);
    guest.pager.arm().unwrap();
    assert_eq!(guest.pager.set_aside(100).unwrap(), []);
    assert_eq!(guest.pager.store_aside(&[0..16], 100).unwrap(), 0);
}
