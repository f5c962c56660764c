//! Files on their way to a client: read piece by piece, where waiting for a disk keeps nobody else waiting.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use hyper::body::Bytes;

/// Bytes read at once.
pub(super) const PIECE: usize = 64 << 10;

/// The piece at `offset`, before `end`; empty where there is none.
pub(super) async fn read(file: &Arc<File>, offset: u64, end: u64) -> io::Result<Bytes> {
    let file = Arc::clone(file);
    let size = PIECE.min(usize::try_from(end.saturating_sub(offset)).unwrap_or(PIECE));
    blocking(move || {
        let mut piece = vec![0; size];
        let length = file.read_at(&mut piece, offset)?;
        piece.truncate(length);
        Ok(Bytes::from(piece))
    })
    .await
}

/// Does on a thread of its own what may wait for a disk.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
