//! Answers that hold for a while: bounded, without a clock of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Answers at most; then the one that ends first goes.
const LIMIT: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Cache<K, V>(BTreeMap<K, (Instant, V)>);

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone, V: Clone> Cache<K, V> {
    /// The answer, while it holds.
    pub(super) fn get(&self, key: &K, now: Instant) -> Option<V> {
        self.0.get(key).filter(|(until, _)| *until > now).map(|(_, value)| value.clone())
    }

    /// Keeps an answer for that long.
    pub(super) fn put(&mut self, key: K, value: V, holds: Duration, now: Instant) {
        if self.0.len() >= LIMIT && !self.0.contains_key(&key) {
            self.make_room(now);
        }
        self.0.insert(key, (now + holds, value));
    }

    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, (until, _)| *until > now);
        if self.0.len() >= LIMIT {
            let first = self.0.iter().min_by_key(|(_, (until, _))| *until).map(|(key, _)| key.clone());
            first.map(|key| self.0.remove(&key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_answer_holds_for_its_time() {
        let (now, mut cache) = (Instant::now(), Cache::default());
        cache.put("a", 1, SECOND, now);
        assert_eq!(cache.get(&"a", now), Some(1));
        assert_eq!(cache.get(&"a", now + SECOND), None);
        cache.put("a", 2, SECOND, now + SECOND);
        assert_eq!(cache.get(&"a", now + SECOND), Some(2));
    }

    #[test]
    fn a_full_cache_forgets_what_ends_first() {
        let (now, mut cache) = (Instant::now(), Cache::default());
        for key in 0..LIMIT {
            cache.put(key, (), SECOND * 2, now);
        }
        cache.put(7, (), SECOND, now);
        cache.put(LIMIT, (), SECOND * 2, now);
        assert_eq!((cache.0.len(), cache.get(&7, now), cache.get(&LIMIT, now)), (LIMIT, None, Some(())));
        cache.put(LIMIT + 1, (), SECOND, now + SECOND * 3);
        assert_eq!(cache.0.len(), 1, "the others are over");
    }
}
