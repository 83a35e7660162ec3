-- overview() -> {now, queued, messages, in flight, waiting, lanes, retry, due retries, due in (-1: nothing is), dead,
--                {number, lease or '', n, oldest id or ''}..., counts of what was settled or ''}: seen in one step.
check_types()
local agents, known = {}, {}
local function add(number, lease)
  local oldest = redis.call('ZRANGEBYSCORE', INFLIGHT, number, number, 'LIMIT', 0, 1)
  known[number] = true
  agents[#agents + 1] =
    {number, lease, redis.call('ZCOUNT', INFLIGHT, number, number), oldest[1] and is_id(oldest[1]) and oldest[1] or ''}
end
local registered = redis.call('ZRANGE', AGENTS, 0, 999, 'WITHSCORES')
for i = 1, #registered, 2 do
  if is_id(registered[i]) then add(registered[i], lease_of(registered[i + 1])) end
end
-- The numbers in flight are the scores: each step goes past the one just seen.
local from = '1'
for _ = 1, 1000 do
  local next = redis.call('ZRANGEBYSCORE', INFLIGHT, from, HIGHEST, 'WITHSCORES', 'LIMIT', 0, 1)
  if not next[2] then break end
  local number = sixteen(next[2])
  if not known[number] and tonumber(next[2]) % 1 == 0 then add(number, '') end
  from = '(' .. next[2]
end
local next_retry = redis.call('ZRANGE', RETRY, 0, 0, 'WITHSCORES')[2]
return {now, redis.call('LLEN', K), redis.call('HLEN', MESSAGES), redis.call('ZCARD', INFLIGHT), redis.call('ZCARD', WAITING),
  redis.call('ZCARD', LANES), redis.call('ZCARD', RETRY), redis.call('ZCOUNT', RETRY, '-inf', now),
  next_retry and math.max(0, math.min(NEVER, tonumber(next_retry)) - now) or -1, redis.call('ZCARD', DEAD), agents,
  redis.call('HGET', CALLS, 'counts') or ''}
