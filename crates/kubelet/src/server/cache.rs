//! Answers of the API server that hold for a while, and are asked for once however many wait for them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

/// Answers at most; then the one that ends first goes.
const LIMIT: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Answers<K, V> {
    known: Mutex<Cache<K, V>>,
    /// Held by whoever asks.
    asking: Mutex<BTreeMap<K, Weak<tokio::sync::Mutex<()>>>>,
}

impl<K, V> Default for Answers<K, V> {
    fn default() -> Self {
        Self { known: Mutex::default(), asking: Mutex::default() }
    }
}

impl<K: Ord + Clone, V: Clone> Answers<K, V> {
    /// The answer, from before or by `ask`, which also says how long it holds. An error is nobody else's answer.
    pub(super) async fn get<E>(
        &self,
        key: K,
        ask: impl Future<Output = Result<(V, Duration), E>>,
    ) -> Result<V, E> {
        if let Some(known) = self.known(&key) {
            return Ok(known);
        }
        let turn = self.turn(&key);
        let _turn = turn.lock().await;
        if let Some(known) = self.known(&key) {
            return Ok(known);
        }
        let (value, holds) = ask.await?;
        lock(&self.known).put(key, value.clone(), holds, Instant::now());
        Ok(value)
    }

    fn known(&self, key: &K) -> Option<V> {
        lock(&self.known).get(key, Instant::now())
    }

    fn turn(&self, key: &K) -> Arc<tokio::sync::Mutex<()>> {
        let mut asking = lock(&self.asking);
        if let Some(turn) = asking.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        asking.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        asking.insert(key.clone(), Arc::downgrade(&turn));
        turn
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is known: bounded, without a clock of its own.
#[derive(Debug)]
struct Cache<K, V>(BTreeMap<K, (Instant, V)>);

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone, V: Clone> Cache<K, V> {
    /// The answer, while it holds.
    fn get(&self, key: &K, now: Instant) -> Option<V> {
        self.0.get(key).filter(|(until, _)| *until > now).map(|(_, value)| value.clone())
    }

    /// Keeps an answer for that long.
    fn put(&mut self, key: K, value: V, holds: Duration, now: Instant) {
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

    #[tokio::test]
    async fn many_who_wait_for_one_answer_ask_once() {
        let (answers, asked) = (Answers::default(), std::cell::Cell::new(0));
        let ask = |fails| {
            let asked = &asked;
            async move {
                asked.set(asked.get() + 1);
                tokio::task::yield_now().await;
                if fails { Err("away") } else { Ok((7, SECOND * 60)) }
            }
        };
        let all = (0..50).map(|_| answers.get("key", ask(false)));
        assert!(futures::future::join_all(all).await.into_iter().all(|answer| answer == Ok(7)));
        assert_eq!(asked.get(), 1);
        assert_eq!(answers.get("other", ask(true)).await, Err("away"));
        assert_eq!(answers.get("other", ask(false)).await, Ok(7));
        assert_eq!((asked.get(), lock(&answers.asking).len()), (3, 1));
    }

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
