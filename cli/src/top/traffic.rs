//! What goes through a node's published ports: read from its metrics, and its rates. Source: OpenMetrics 1.0, the text format.

use std::collections::BTreeMap;

/// Ports that are kept at most; the daemon tells of no more than 256 and the rest as one.
const PORTS_MAX: usize = 512;

/// A published port: its number and its protocol, as the daemon writes them.
pub(crate) type Port = (String, String);

/// Counters of each published port since the daemon's start.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Traffic(pub(crate) BTreeMap<Port, Counters>);

/// What is counted of one port.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Counters {
    /// Connections that are open now; of UDP, flows.
    pub(crate) open: f64,
    /// Connections that were accepted.
    pub(crate) accepted: f64,
    /// Of them, those that no task took.
    pub(crate) given_up: f64,
    /// Attempts at a task that failed.
    pub(crate) failed: f64,
    /// Bytes from clients.
    pub(crate) received: f64,
    /// Bytes to clients.
    pub(crate) sent: f64,
}

/// What goes through one port each second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Rate {
    /// Connections.
    pub(crate) accepted: f64,
    /// Bytes from clients.
    pub(crate) received: f64,
    /// Bytes to clients.
    pub(crate) sent: f64,
}

impl Traffic {
    /// Reads the metrics' text. Lines that tell of something else, or make no sense, are passed over.
    pub(crate) fn parse(text: &str) -> Self {
        let mut ports: BTreeMap<Port, Counters> = BTreeMap::new();
        for line in text.lines() {
            let Some((name, port, value)) = sample(line) else { continue };
            if ports.len() >= PORTS_MAX && !ports.contains_key(&port) {
                continue;
            }
            let counters = ports.entry(port).or_default();
            let counter = match name {
                "open" => &mut counters.open,
                "connections_total" => &mut counters.accepted,
                "given_up_total" => &mut counters.given_up,
                "attempts_failed_total" => &mut counters.failed,
                "received_bytes_total" => &mut counters.received,
                "sent_bytes_total" => &mut counters.sent,
                _ => continue,
            };
            *counter = value;
        }
        Self(ports)
    }

    /// Returns what went through each port each second since `before`; nothing of a port that counts anew.
    pub(crate) fn rates(&self, before: &Self, nanos: i128) -> BTreeMap<Port, Rate> {
        if nanos <= 0 {
            return BTreeMap::new();
        }
        let seconds = nanos as f64 / 1e9;
        let rate = |(port, now): (&Port, &Counters)| {
            let then = before.0.get(port)?;
            let each = |now: f64, then: f64| (now >= then).then_some((now - then) / seconds);
            let rate = Rate {
                accepted: each(now.accepted, then.accepted)?,
                received: each(now.received, then.received)?,
                sent: each(now.sent, then.sent)?,
            };
            Some((port.clone(), rate))
        };
        self.0.iter().filter_map(rate).collect()
    }
}

/// Reads `shoal_ingress_NAME{port="80",protocol="tcp"} 7`.
fn sample(line: &str) -> Option<(&str, Port, f64)> {
    let (name, rest) = line.strip_prefix("shoal_ingress_")?.split_once('{')?;
    let (labels, value) = rest.split_once("} ")?;
    // Ports and protocols are numbers and words: nothing in them is escaped.
    let label = |wanted: &str| {
        let found = labels.split(',').find_map(|label| label.strip_prefix(wanted)?.strip_prefix("=\""));
        found.and_then(|text| text.strip_suffix('"')).map(str::to_owned)
    };
    let value: f64 = value.split(' ').next()?.parse().ok()?;
    Some((name, (label("port")?, label("protocol")?), value)).filter(|_| value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP shoal_ingress_connections x\n\
        shoal_ingress_connections_total{port=\"80\",protocol=\"tcp\"} 12\n\
        shoal_ingress_connections_total{port=\"53\",protocol=\"udp\"} 3\n\
        shoal_ingress_received_bytes_total{port=\"80\",protocol=\"tcp\"} 1000\n\
        shoal_ingress_connected_total{port=\"80\",protocol=\"tcp\",node=\"other\"} 2\n\
        shoal_ingress_open{port=\"80\",protocol=\"tcp\"} 2\n\
        shoal_ingress_open{port=\"80\" 2\nshoal_ingress_open{} x\n\
        shoal_ingress_paused_total 0\nshoal_tasks{state=\"running\"} 9\n# EOF\n";

    fn port(number: &str, protocol: &str) -> Port {
        (number.to_owned(), protocol.to_owned())
    }

    #[test]
    fn metrics_are_read() {
        let traffic = Traffic::parse(TEXT);
        assert_eq!(traffic.0.len(), 2);
        let web = traffic.0[&port("80", "tcp")];
        assert_eq!((web.accepted, web.received, web.open), (12.0, 1000.0, 2.0));
        assert_eq!(traffic.0[&port("53", "udp")].accepted, 3.0);
    }

    #[test]
    fn rates_are_differences_and_a_restart_is_none() {
        let (before, mut after) = (Traffic::parse(TEXT), Traffic::parse(TEXT));
        after.0.get_mut(&port("80", "tcp")).unwrap().received = 3000.0;
        after.0.get_mut(&port("53", "udp")).unwrap().accepted = 1.0;
        let rates = after.rates(&before, 2_000_000_000);
        assert_eq!(rates[&port("80", "tcp")], Rate { accepted: 0.0, received: 1000.0, sent: 0.0 });
        assert_eq!(rates.len(), 1);
        assert!(after.rates(&before, 0).is_empty());
        assert!(after.rates(&Traffic::default(), 1).is_empty());
    }

    #[test]
    fn ports_are_bounded() {
        let text: String =
            (0..2000).map(|port| format!("shoal_ingress_open{{port=\"{port}\",protocol=\"tcp\"}} 1\n")).collect();
        assert_eq!(Traffic::parse(&text).0.len(), PORTS_MAX);
    }
}
