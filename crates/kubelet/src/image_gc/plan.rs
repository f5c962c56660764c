//! Which images go, and in which order: as a kubelet decides it. Pure; nothing here asks a runtime or a disk.
//!
//! Sizes of images only order nothing and promise nothing: layers are shared, so whoever carries this out looks at the disk after
//! each removal and stops when enough is free.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::time::BootTime;

/// When images are removed: `imageGCHighThresholdPercent`, `imageGCLowThresholdPercent`, `imageMinimumGCAge`, `imageMaximumGCAge`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageGcPolicy {
    /// Percent of the disk in use at which removing begins; 100 never begins.
    pub high_threshold_percent: u8,
    /// Percent of the disk in use at which it ends.
    pub low_threshold_percent: u8,
    /// A younger image stays.
    pub minimum_age: Duration,
    /// An image that nobody has used for longer goes, however much is free; nothing: none does.
    pub maximum_age: Option<Duration>,
}

impl Default for ImageGcPolicy {
    fn default() -> Self {
        Self {
            high_threshold_percent: 85,
            low_threshold_percent: 80,
            minimum_age: Duration::from_secs(2 * 60),
            maximum_age: None,
        }
    }
}

/// An image as the runtime lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: String,
    /// Names with tags and digests.
    pub(crate) names: Vec<String>,
    pub(crate) pinned: bool,
}

/// The disk that the images lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) capacity: u64,
    pub(crate) available: u64,
}

/// What was seen of the images so far.
#[derive(Debug, Default)]
pub(crate) struct Records {
    images: BTreeMap<String, Record>,
    begun: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    first_seen: BootTime,
    /// `BootTime(0)`: not while we looked.
    last_used: BootTime,
    removable: bool,
}

impl Records {
    /// Takes note of the images of now. `used` are ids and names that containers and volumes have. What is there when the kubelet
    /// starts may be of any age.
    pub(crate) fn observe(&mut self, images: &[Listed], used: &BTreeSet<String>, now: BootTime) {
        let first_seen = if self.begun { now } else { BootTime(0) };
        self.begun = true;
        let mut seen = BTreeMap::new();
        for image in images {
            let known = self.images.get(&image.id).copied();
            let mut record = known.unwrap_or(Record { first_seen, last_used: BootTime(0), removable: true });
            let in_use = used.contains(&image.id) || image.names.iter().any(|name| used.contains(name));
            if in_use {
                record.last_used = now;
            }
            record.removable = !in_use && !image.pinned;
            seen.insert(image.id.clone(), record);
        }
        self.images = seen;
    }

    /// An image is gone.
    pub(crate) fn forget(&mut self, id: &str) {
        self.images.remove(id);
    }

    /// Removable images, the one that was used longest ago first; of those used at the same time the one seen first.
    fn candidates(&self, now: BootTime, policy: &ImageGcPolicy) -> Vec<(&String, &Record)> {
        let old_enough = |record: &Record| now.since(record.first_seen) >= policy.minimum_age;
        let mut candidates: Vec<_> =
            self.images.iter().filter(|(_, record)| record.removable && old_enough(record)).collect();
        candidates.sort_by_key(|(id, record)| (record.last_used, record.first_seen, (*id).clone()));
        candidates
    }
}

/// What one round does.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Images that nobody has used for too long.
    pub(crate) expired: Vec<String>,
    pub(crate) space: Space,
}

/// What a round does for free space.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// Enough is free.
    Enough,
    /// The disk says that it has no size.
    NoCapacity,
    /// These go, in this order, until so many bytes are available.
    Free { usage_percent: u64, until_available: u64, images: Vec<String> },
}

/// Decides one round.
pub(crate) fn plan(records: &Records, disk: Disk, policy: &ImageGcPolicy, now: BootTime) -> Plan {
    let candidates = records.candidates(now, policy);
    let is_expired = |record: &Record| {
        let since = if record.last_used == BootTime(0) { record.first_seen } else { record.last_used };
        // What was there at the start counts from the start: from when we do not know.
        since != BootTime(0) && policy.maximum_age.is_some_and(|age| now.since(since) > age)
    };
    let (expired, others): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|(_, record)| is_expired(record));
    let ids =
        |records: Vec<(&String, &Record)>| records.into_iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
    Plan { expired: ids(expired), space: space(disk, policy, ids(others)) }
}

fn space(disk: Disk, policy: &ImageGcPolicy, images: Vec<String>) -> Space {
    let Disk { capacity, available } = disk;
    if capacity == 0 {
        return Space::NoCapacity;
    }
    let percent = |part: u64| u64::try_from(u128::from(part) * 100 / u128::from(capacity)).unwrap_or(100);
    let usage_percent = 100 - percent(available.min(capacity)).min(100);
    if usage_percent < u64::from(policy.high_threshold_percent) {
        return Space::Enough;
    }
    let free_percent = 100 - u128::from(policy.low_threshold_percent.min(100));
    let until_available = u64::try_from(u128::from(capacity) * free_percent / 100).unwrap_or(capacity);
    Space::Free { usage_percent, until_available, images }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60_000;

    fn image(id: &str) -> Listed {
        Listed { id: id.to_owned(), names: vec![format!("{id}:1")], pinned: false }
    }

    fn used(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn order(records: &Records, now: u64) -> Vec<String> {
        let full = Disk { capacity: 100, available: 0 };
        match plan(records, full, &ImageGcPolicy::default(), BootTime(now)).space {
            Space::Free { images, .. } => images,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn removing_begins_at_the_high_threshold_and_ends_at_the_low_one() {
        let policy = ImageGcPolicy::default();
        for (capacity, available, expect) in [
            (1000, 160, None),
            (1000, 150, Some((85, 200))),
            (1000, 0, Some((100, 200))),
            // The available percents are cut, as upstream's are.
            (1000, 159, Some((85, 200))),
            (u64::MAX, 0, Some((100, u64::MAX / 5))),
            // More available than there is: a quota that changed.
            (1000, 2000, None),
        ] {
            let space = space(Disk { capacity, available }, &policy, vec![]);
            let got = match space {
                Space::Enough => None,
                Space::Free { usage_percent, until_available, .. } => Some((usage_percent, until_available)),
                Space::NoCapacity => panic!("it has one"),
            };
            assert_eq!(got, expect, "{available} of {capacity}");
        }
        assert_eq!(space(Disk { capacity: 0, available: 0 }, &policy, vec![]), Space::NoCapacity);
        let never = ImageGcPolicy { high_threshold_percent: 101, ..policy };
        assert_eq!(space(Disk { capacity: 10, available: 0 }, &never, vec![]), Space::Enough);
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_what_is_used_or_pinned_stays() {
        let mut records = Records::default();
        let mut images = vec![image("a"), image("b"), image("c"), image("d")];
        images[3].pinned = true;
        records.observe(&images, &used(&["a", "b:1"]), BootTime(10 * MINUTE));
        records.observe(&images, &used(&["a"]), BootTime(20 * MINUTE));
        assert_eq!(order(&records, 20 * MINUTE), ["c", "b"], "a is in use, d pinned");
        records.observe(&images, &used(&[]), BootTime(30 * MINUTE));
        assert_eq!(order(&records, 30 * MINUTE), ["c", "b", "a"]);
        records.forget("c");
        assert_eq!(order(&records, 30 * MINUTE), ["b", "a"]);
    }

    #[test]
    fn an_image_that_came_a_moment_ago_stays_but_not_one_from_before_the_start() {
        let mut records = Records::default();
        records.observe(&[image("old")], &used(&[]), BootTime(MINUTE));
        assert_eq!(order(&records, MINUTE + 120_000), ["old"]);
        let both = [image("old"), image("new")];
        records.observe(&both, &used(&[]), BootTime(10 * MINUTE));
        assert_eq!(order(&records, 12 * MINUTE - 1), ["old"]);
        assert_eq!(order(&records, 12 * MINUTE), ["old", "new"]);
    }

    #[test]
    fn an_image_that_nobody_used_for_too_long_goes_although_there_is_room() {
        let policy =
            ImageGcPolicy { maximum_age: Some(Duration::from_secs(3600)), ..ImageGcPolicy::default() };
        let mut records = Records::default();
        let images = [image("start"), image("used")];
        records.observe(&images, &used(&["used"]), BootTime(MINUTE));
        records.observe(&images, &used(&[]), BootTime(2 * MINUTE));
        let room = Disk { capacity: 100, available: 90 };
        let at = |minutes: u64| plan(&records, room, &policy, BootTime(minutes * MINUTE));
        assert_eq!(at(61), Plan { expired: vec![], space: Space::Enough });
        assert_eq!(at(62), Plan { expired: vec!["used".to_owned()], space: Space::Enough });
    }
}
