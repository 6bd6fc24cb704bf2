//! A network of its own for one program: a namespace at the end of a virtual cable, whose packets can be dropped
//! without a word, as a pulled plug or a silent firewall does.

use crate::run;
use std::{
    net::Ipv4Addr,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace with one cable to this machine; gone with this value.
pub struct Network {
    name: String,
    cable: String,
    here: Ipv4Addr,
    there: Ipv4Addr,
}

impl Network {
    /// Why there can be none on this machine, if there can be none.
    #[must_use]
    pub fn missing() -> Option<&'static str> {
        if !crate::is_root() {
            return Some("not root: left out, since no network namespace can be made");
        }
        let has = |program: &str| Command::new(program).arg("-V").output().is_ok();
        (!has("ip") || !has("iptables"))
            .then_some("ip or iptables is missing: left out (apt-get install iproute2 iptables)")
    }

    /// Makes one.
    ///
    /// # Panics
    /// If the system refuses; see [`Self::missing`].
    #[must_use]
    pub fn start() -> Self {
        let (pid, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let octet = |value: u32| u8::try_from(value % 250).unwrap_or_default();
        let subnet = |last| Ipv4Addr::new(10, 213, octet(pid), octet(number * 4 + last));
        let network = Self {
            name: format!("passerelle-{pid}-{number}"),
            // The kernel takes 15 characters.
            cable: format!("ps{pid}x{number}"),
            here: subnet(1),
            there: subnet(2),
        };
        let Self { name, cable, here, there } = &network;
        let far = format!("{cable}f");
        ip(&["netns", "add", name]);
        ip(&["link", "add", cable, "type", "veth", "peer", "name", &far, "netns", name]);
        ip(&["addr", "add", &format!("{here}/30"), "dev", cable]);
        ip(&["link", "set", cable, "up"]);
        ip(&["-n", name, "addr", "add", &format!("{there}/30"), "dev", &far]);
        ip(&["-n", name, "link", "set", &far, "up"]);
        ip(&["-n", name, "link", "set", "lo", "up"]);
        network
    }

    /// The name of the namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of this machine as seen from inside.
    #[must_use]
    pub fn here(&self) -> Ipv4Addr {
        self.here
    }

    /// The address of who is inside.
    #[must_use]
    pub fn there(&self) -> Ipv4Addr {
        self.there
    }

    /// From now on every packet to and from this port of this machine is dropped, without an answer; `false` lets them
    /// through again.
    pub fn lose(&self, port: u16, lose: bool) {
        let how = if lose { "-I" } else { "-D" };
        for (chain, side) in [("INPUT", "--sport"), ("OUTPUT", "--dport")] {
            let port = port.to_string();
            let rule = ["iptables", "-w", how, chain, "-p", "tcp", side, &port, "-j", "DROP"];
            let mut arguments = vec!["netns", "exec", self.name.as_str()];
            arguments.extend(rule);
            ip(&arguments);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _best_effort = run(Command::new("ip").args(["link", "del", &self.cable]));
        let _best_effort = run(Command::new("ip").args(["netns", "del", &self.name]));
    }
}

fn ip(arguments: &[&str]) {
    let output = run(Command::new("ip").args(arguments));
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
