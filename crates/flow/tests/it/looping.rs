//! Loops: nudges, periods, errors, and the one that trims.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base::{
    clock::{Clock, ManualClock},
    shutdown::Shutdown,
};
use flow::{
    FLOWS, FlowState,
    loops::{Loop, LoopStatus, Loops},
    trim::Trim,
};
use store::{BoxFuture, Store, Transaction, memory::Memory};

use crate::world::{order, schema};

struct Count {
    passes: Arc<AtomicU64>,
}

impl Loop for Count {
    fn name(&self) -> &'static str {
        "count"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn pass(&self) -> BoxFuture<'_, Result<String, Box<dyn std::error::Error + Send + Sync>>> {
        Box::pin(async move {
            match self.passes.fetch_add(1, Ordering::SeqCst) {
                1 => Err("the second pass goes wrong".into()),
                pass => Ok(format!("pass {pass}")),
            }
        })
    }
}

async fn until_passes(board: &flow::loops::Board, passes: u64) -> LoopStatus {
    let waited = async {
        loop {
            let status = board.status().remove(0);
            if status.passes >= passes {
                return status;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waited).await.expect("the loop passes")
}

#[tokio::test]
async fn loops_pass_on_start_on_nudge_and_on_time() {
    let clock = Arc::new(ManualClock::new(1_000));
    let mut loops = Loops::new(clock.clone());
    let nudge = loops.add(Count { passes: Arc::default() });
    let board = loops.board();
    let (trigger, shutdown) = Shutdown::new();
    let running = base::task::spawn("loops", loops.run(shutdown));
    let status = until_passes(&board, 1).await;
    assert_eq!(
        (status.last_success_at, status.last_error, status.last_summary.as_deref()),
        (Some(1_000), None, Some("pass 0"))
    );
    clock.advance(Duration::from_secs(5));
    nudge.nudge();
    let status = until_passes(&board, 2).await;
    assert_eq!((status.last_success_at, status.failures), (Some(1_000), 1), "the age is that of the last good pass");
    assert_eq!(status.last_error.as_deref(), Some("the second pass goes wrong"));
    clock.advance(Duration::from_secs(60));
    let status = until_passes(&board, 3).await;
    assert_eq!((status.last_success_at, status.last_error, status.failures), (Some(66_000), None, 0));
    trigger.fire();
    running.await.unwrap();
}

#[tokio::test]
async fn old_and_surplus_flows_are_trimmed_and_open_ones_kept() {
    let store = Store::open(Arc::new(Memory::new()), schema()).await.unwrap();
    let clock = Arc::new(ManualClock::new(1_000_000));
    let mut ids = Vec::new();
    for number in 0..130 {
        let id = order(&store, clock.as_ref(), &format!("thing-{number}"), 0).await;
        ids.push(id.to_string());
        clock.advance(Duration::from_secs(1));
    }
    for id in &ids[1..] {
        let entry = store.snapshot().get(&FLOWS, id).unwrap();
        let mut done = entry.value.clone();
        done.state = FlowState::Succeeded;
        done.ended_at = Some(clock.now_ms());
        store.commit(Transaction::new().replace(&FLOWS, &entry, done)).await.unwrap();
    }
    let trim = Trim::new(store.clone(), clock.clone()).keep(10);
    assert_eq!(trim.pass().await.unwrap(), "119 ended flows trimmed");
    assert_eq!(trim.pass().await.unwrap(), "");
    let left: Vec<_> = store.snapshot().scan(&FLOWS).map(|flow| flow.id.to_string()).collect();
    let mut wanted = vec![ids[0].clone()];
    wanted.extend_from_slice(&ids[120..]);
    assert_eq!(left, wanted, "the open one and the ten newest");
    clock.advance(Duration::from_secs(8 * 24 * 3600));
    assert_eq!(trim.pass().await.unwrap(), "10 ended flows trimmed");
    assert_eq!(store.snapshot().count(&FLOWS), 1);
}
