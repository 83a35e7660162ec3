-- retry(id...) -> n: what is on the retry schedule is due now. Its own backoff is over: with an endpoint that is down it
-- waits for that like any other.
check_types()
open_for_writing()
local n = 0
for _, id in ipairs(ARGV) do
  local due = is_id(id) and redis.call('ZSCORE', RETRY, id)
  if due then
    local history = redis.call('HGET', HISTORY, id)
    local attempts, why = string.match(history or '', '^(%d+) %d+ %+?%d+ (.*)$')
    if attempts then put_off(id, history, attempts, 0, why) end
    if tonumber(due) > now then redis.call('ZADD', RETRY, now, id) end
    n = n + 1
  end
end
return n
