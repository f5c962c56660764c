//! Rules of a stand-alone plugin: written by itself, for one container, into chains of its own.

use hostnet::conntrack;
use hostnet::netfilter::{Family, ProgramError, Programs, Ruleset, in_words_of, parse_saved, render_restore};

use crate::client::{open_loopback, stale_flows};
use crate::error::{CniError, Code};
use crate::portmap::Protocol;
use crate::rules::{self, Needs, Place};

/// Makes `needs` the whole of what the container has in these chains; nothing removes them. Repeatable.
pub(crate) fn write(chains: &[&str], place: &Place, needs: &Needs) -> Result<(), CniError> {
    let wanted = rules::render([needs].into_iter(), place);
    for family in Family::ALL {
        let Some((programs, seen)) = read(family, chains, place, wanted.of(family))? else { continue };
        // What a former call left is not taken for what is wanted now: it stays in iptables' words.
        if let Some(input) = render_restore(&seen, wanted.of(family)) {
            programs.restore(&input).map_err(program)?;
        }
    }
    open_loopback(&needs.ports)?;
    for port in needs.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        let flows = conntrack::udp_flows(Family::of(port.container.addr()))?;
        conntrack::delete(&stale_flows(flows, port))?;
    }
    Ok(())
}

/// CNI 1.1 §4 "CHECK": everything is there.
pub(crate) fn check(chains: &[&str], place: &Place, needs: &Needs) -> Result<(), CniError> {
    let wanted = rules::render([needs].into_iter(), place);
    for family in Family::ALL {
        let read = read(family, chains, place, wanted.of(family))?;
        let is_missing = |seen: &Ruleset| {
            let seen = in_words_of(wanted.of(family), seen);
            render_restore(&seen, wanted.of(family)).is_some()
        };
        if read.is_some_and(|(_, seen)| is_missing(&seen)) {
            return Err(CniError::new(Code::Internal, "netfilter rules of the container are missing"));
        }
    }
    Ok(())
}

/// What is there of the container. Where nothing is wanted, nothing need be installed.
fn read(
    family: Family,
    chains: &[&str],
    place: &Place,
    wanted: &Ruleset,
) -> Result<Option<(Programs, Ruleset)>, CniError> {
    let names: Vec<String> = chains.iter().map(|short| place.chain(short, "")).collect();
    let prefixes: Vec<&str> = names.iter().map(String::as_str).collect();
    let saved = Programs::find(family).and_then(|programs| Ok((programs.save()?, programs)));
    match saved {
        Err(ProgramError::Missing { .. }) if wanted.is_empty() => Ok(None),
        Err(_) if wanted.is_empty() && family == Family::V6 => Ok(None),
        Err(error) => Err(program(error)),
        Ok((saved, programs)) => Ok(Some((programs, parse_saved(&saved, &prefixes)))),
    }
}

fn program(error: ProgramError) -> CniError {
    CniError::caused(Code::Internal, "write the container's netfilter rules", error)
}
