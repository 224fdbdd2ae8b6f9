//! The memory report as text for Prometheus (OpenMetrics 1.0).

use std::fmt;

use cistern_memory::pager::SourceStatistics;
use cistern_memory::sharing::Mechanisms;
use cistern_memory::sharing::ksm::KsmHost;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::body::{MemoryReport, SharingReport};

/// What the text is.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const NANOS_PER_SECOND: f64 = 1e9;

/// The report as text.
pub fn text(report: MemoryReport) -> String {
    let mut registry = Registry::with_prefix("cistern");
    registry.register_collector(Box::new(Snapshot(report)));
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string takes all text");
    text
}

/// Metrics of one moment.
#[derive(Debug)]
struct Snapshot(MemoryReport);

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut families = Families(encoder);
        let report = &self.0;
        let pager = &report.pager;
        families.gauge("armed", "1 when page faults are answered by the pager", u64::from(pager.armed))?;
        if let Some(bytes) = pager.resident_limit_bytes {
            families.gauge("resident_limit_bytes", "What resident and stored pages may cost the host", bytes)?;
        }
        families.gauge("charge_bytes", "What resident and stored pages cost the host", pager.charge_bytes)?;
        families.gauge("ram_pages", "Pages of guest RAM", pager.ram_pages)?;
        let pages = pager.pages;
        families.gauges(
            "pages",
            "Pages by state",
            "state",
            &[
                ("unknown", pages.unknown),
                ("untouched", pages.untouched),
                ("resident", pages.resident),
                ("aside", pages.aside),
                ("zero", pages.zero),
                ("duplicate", pages.duplicate),
                ("compressed", pages.compressed),
                ("swapped", pages.swapped),
                ("in_flight", pages.in_flight),
            ],
        )?;
        families.gauge("incompressible_pages", "Resident pages that do not compress", pages.incompressible)?;
        let compressed = pager.compressed;
        families.gauge("compressed_input_bytes", "Bytes stored compressed, before compression", compressed.bytes_in)?;
        families.gauge("compressed_held_bytes", "Memory of the compressed store", compressed.held_bytes)?;
        families.gauge("compressed_limit_bytes", "What the compressed store may hold", compressed.limit_bytes)?;
        families.gauge("duplicate_contents", "Different contents stored", pager.duplicates.contents)?;
        families.gauge("duplicate_references", "Stored pages that refer to them", pager.duplicates.references)?;
        families.gauge("duplicate_held_bytes", "Memory of the index of contents", pager.duplicates.held_bytes)?;
        if let Some(swap) = &pager.swap {
            families.gauge("swap_held_bytes", "Bytes in the swap file", swap.held_bytes)?;
            families.gauge("swap_unavailable", "1 after a write failed", u64::from(swap.unavailable))?;
            families.counter("swap_written_bytes", "Bytes written to the swap file", swap.written_bytes)?;
            families.counter("swap_read_bytes", "Bytes read from the swap file", swap.read_bytes)?;
        }
        self.encode_refaults(&mut families)?;
        let evictions = pager.evictions;
        families.counters(
            "evictions",
            "Pages that left guest RAM, and what became of them",
            "kind",
            &[
                ("aside", evictions.aside),
                ("unmerged", evictions.unmerged),
                ("zero", evictions.zero),
                ("duplicate", evictions.duplicate),
                ("compressed", evictions.compressed),
                ("swapped", evictions.swapped),
                ("written_back", evictions.written_back),
                ("incompressible", evictions.incompressible),
                ("overtaken", evictions.overtaken),
                ("freed", evictions.freed),
                ("zero_freed", evictions.zero_freed),
                ("broken", evictions.broken),
            ],
        )?;
        let failures = pager.failures;
        families.counters(
            "failures",
            "What went wrong without losing a page",
            "kind",
            &[
                ("busy", failures.busy),
                ("eviction", failures.eviction),
                ("retried", failures.retried),
                ("store_full", failures.store_full),
                ("swap_write", failures.swap_write),
                ("swap_full", failures.swap_full),
                ("device_pages", failures.device_pages),
                ("over_limit_pages", failures.over_limit_pages),
            ],
        )?;
        families.gauge("balloon_inflated_bytes", "Bytes in the guest's balloon", report.balloon_inflated_bytes)?;
        families.counter("reported_bytes", "Bytes given back by free page reporting", report.reported_bytes)?;
        match &report.sharing {
            Some(sharing) => encode_sharing(sharing, &mut families),
            None => Ok(()),
        }
    }
}

fn encode_sharing(report: &SharingReport, families: &mut Families) -> fmt::Result {
    let scanner = &report.scanner;
    let Mechanisms { zero, store, ksm } = scanner.mechanisms;
    families.gauges(
        "sharing_enabled",
        "1 for each way of sharing that is switched on",
        "mechanism",
        &[("zero", zero.into()), ("store", store.into()), ("ksm", ksm.into())],
    )?;
    families.gauge("sharing_scanning", "1 while guest RAM is scanned", u64::from(scanner.is_scanning))?;
    families.counter("sharing_cpu_nanoseconds", "CPU time of the scanner", scanner.cpu_ns)?;
    families.counter("sharing_scanned_pages", "Pages the scanner has looked at", scanner.scanned_pages)?;
    families.counter("sharing_zero_pages", "Zero pages it has given back", scanner.freed_pages)?;
    families.counter("sharing_rounds", "Times it has been through guest RAM", scanner.rounds)?;
    families.counter("sharing_failures", "Times the pool's folder or the kernel's advice failed", scanner.failures)?;
    families.gauge("sharing_stored_once_pages", "Pages stored as a reference to another", report.stored_once_pages)?;
    if let Some(merging) = &scanner.merging {
        families.gauges(
            "merging_pages",
            "Pages by what is known of them for merging; a page may be several of these",
            "kind",
            &[
                ("stable", merging.stable_pages),
                ("duplicate", merging.duplicate_pages),
                ("advised", merging.advised_pages),
                ("waiting", merging.waiting_pages),
                ("merged", merging.merged_pages),
            ],
        )?;
        families.gauge("merging_saved_bytes", "What merged pages cost less than unmerged", merging.saved_bytes)?;
        families.counter("merging_broken_pages", "Merged pages that were written to", merging.broken_pages)?;
        families.counter("merging_given_up_regions", "Regions that did not stay merged", merging.given_up_regions)?;
    }
    if let Some(host) = &report.ksm.host {
        encode_ksm(host, families)?;
    }
    let process = &report.ksm.process;
    let known = |pages: &[(&'static str, Option<u64>)]| -> Vec<(&'static str, u64)> {
        pages.iter().filter_map(|&(kind, pages)| Some((kind, pages?))).collect()
    };
    families.gauges(
        "ksm_process_pages",
        "The kernel's count of this process's merged pages, zero pages, and notes on pages",
        "kind",
        &known(&[("merging", process.merging_pages), ("zero", process.zero_pages), ("rmap_items", process.rmap_items)]),
    )?;
    match process.profit_bytes {
        Some(bytes) => families.gauge("ksm_process_profit_bytes", "What KSM saves here, less its notes", bytes),
        None => Ok(()),
    }
}

/// The whole host's (kernel Documentation/admin-guide/mm/ksm.rst).
fn encode_ksm(host: &KsmHost, families: &mut Families) -> fmt::Result {
    families.gauge("ksm_run", "1 while ksmd runs, 2 when it has unmerged all", host.run)?;
    families.gauge("ksm_pages_to_scan", "Pages that ksmd looks at before it sleeps", host.pages_to_scan)?;
    families.gauge("ksm_sleep_milliseconds", "How long it sleeps", host.sleep_millisecs)?;
    if let Some(across) = host.merge_across_nodes {
        families.gauge("ksm_merge_across_nodes", "1 when pages of several nodes are merged", u64::from(across))?;
    }
    let mut pages = vec![
        ("shared", host.pages_shared),
        ("sharing", host.pages_sharing),
        ("unshared", host.pages_unshared),
        ("volatile", host.pages_volatile),
    ];
    pages.extend(host.ksm_zero_pages.map(|pages| ("zero", pages)));
    families.gauges("ksm_pages", "Pages of the whole host, by what KSM has made of them", "kind", &pages)?;
    if let Some(ratio) = host.sharing_ratio {
        families.gauge("ksm_sharing_ratio", "Pages sharing for each shared one", ratio)?;
    }
    families.counter("ksm_full_scans", "Times ksmd has been through all that is advised", host.full_scans)?;
    match host.general_profit_bytes {
        Some(bytes) => families.gauge("ksm_general_profit_bytes", "What KSM saves, less its notes", bytes),
        None => Ok(()),
    }
}

impl Snapshot {
    fn encode_refaults(&self, families: &mut Families) -> fmt::Result {
        let refaults = &self.0.pager.refaults;
        let sources = [
            ("first_touch", &refaults.first_touch),
            ("aside", &refaults.aside),
            ("zero", &refaults.zero),
            ("duplicate", &refaults.duplicate),
            ("compressed", &refaults.compressed),
            ("swapped", &refaults.swapped),
        ];
        let each = |value: fn(&SourceStatistics) -> u64| sources.map(|(name, source)| (name, value(source)));
        families.counters("refaults", "Pages that a fault or pin asked for", "source", &each(|source| source.pages))?;
        let around = each(|source| source.around_pages);
        families.counters("refaults_around", "Pages brought along with them", "source", &around)?;
        // Not a Prometheus histogram: its steps would have to be the same ones always.
        let mut family = families.0.encode_descriptor(
            "refault_latency_seconds",
            "Time from reading a fault to the page being there",
            None,
            MetricType::Gauge,
        )?;
        for (name, source) in sources {
            let latency = &source.latency;
            for (quantile, ns) in [("0.5", latency.p50_ns), ("0.99", latency.p99_ns), ("0.999", latency.p999_ns)] {
                let labels = [("source", name), ("quantile", quantile)];
                ConstGauge::new(ns as f64 / NANOS_PER_SECOND).encode(family.encode_family(&labels)?)?;
            }
        }
        families.counter("faults_joined", "Faults on pages that were on their way", refaults.joined)?;
        families.counter("faults_waited", "Faults that waited because the limit was reached", refaults.waited)?;
        families.counter("stall_nanoseconds", "Time from reading a fault to its answer, summed", refaults.stall_ns)
    }
}

/// Writes one family after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        let family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(family)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(family)
    }

    fn gauges(&mut self, name: &str, help: &str, label: &str, values: &[(&str, u64)]) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (member, value) in values {
            ConstGauge::new(*value).encode(family.encode_family(&[(label, *member)])?)?;
        }
        Ok(())
    }

    fn counters(&mut self, name: &str, help: &str, label: &str, values: &[(&str, u64)]) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (member, value) in values {
            ConstCounter::new(*value).encode(family.encode_family(&[(label, *member)])?)?;
        }
        Ok(())
    }
}
