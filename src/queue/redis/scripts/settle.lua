-- settle(me, call, n, {origin, n, id...}...        delivered, by origin
--                  n, {id, delay, attempts, own, why}...            to the retry schedule
--                  n, {id, origin, delay or -1, attempts, own, why}...  to wait for their lanes
--                  n, {id, attempts, own, why}...                   dead
--                  n, {origin, 'o'}... or {origin, 'c', delay, failures, s or f, why}... or {origin, 'd', delay}...
--                     or {origin, 'f'}...      lanes that opened, closed, are due, or whose prober died)
--   -> {state, ids that are not ours any more}; nothing is done if the state is `old`
-- What was delivered goes wherever it is. Everything else is done only if it is
-- still ours: after a recovery another agent may have it.
local me, call = ARGV[1], ARGV[2]
local at = 2
local function word() at = at + 1 return (assert(ARGV[at])) end
local function number() return (assert(tonumber(word()))) end
local function id_word() local id = word() assert(string.match(id, '^%d+$') and #id == 16) return id end
local function many(read) local list = {} for i = 1, number() do list[i] = read() end return list end
assert(tonumber(call))

-- The ids of all origins in one list, so that each key is called once for 500 of them.
local delivered, origin_of = {}, {}
for _ = 1, number() do
  local origin = word()
  for _ = 1, number() do
    local n = #delivered + 1
    delivered[n], origin_of[n] = id_word(), origin
  end
end
local retries = many(function() return {id = id_word(), delay = number(), attempts = number(), own = number(), why = word()} end)
local waits = many(function()
  return {id = id_word(), origin = word(), delay = number(), attempts = number(), own = number(), why = word()}
end)
local deaths = many(function() return {id = id_word(), attempts = number(), own = number(), why = word()} end)
local changes = many(function()
  local change = {origin = word(), what = word()}
  if change.what == 'c' then change.delay, change.failures, change.how, change.why = number(), number(), word(), word() end
  if change.what == 'd' then change.delay = number() end
  return change
end)

local last = redis.call('HGET', CALLS, 's' .. me)
local last_call = last and tonumber(string.match(last, '^%d+'))
if last_call == tonumber(call) then
  local lost = {}
  for id in string.gmatch(last, ' (%d+)') do if is_id(id) then lost[#lost + 1] = id end end
  return {'again', lost}
end
-- Overtaken, and nobody listens; or the record is none of ours, and whoever listens must begin anew.
if last_call and last_call > tonumber(call) then return {'old', {}} end
check_types()
open_for_writing()

local mine, lost = tonumber(me), {}
-- A settled attempt clears the count of agents that died with the message.
local any_recovered = redis.call('HLEN', RECOVERED) > 0
local function for_mine(list, place)
  local n_placed, n_failed = 0, 0
  for _, it in ipairs(list) do
    local owner = redis.call('ZSCORE', INFLIGHT, it.id)
    if owner and tonumber(owner) == mine then
      place(it)
      n_placed = n_placed + 1
      local history = redis.call('HGET', HISTORY, it.id)
      put_off(it.id, history, it.attempts, it.own, it.why, it.origin and is_paused(it.origin))
      local before = history and tonumber(string.match(history, '^%d+')) or 0
      if it.attempts > before then n_failed = n_failed + 1 end
      if any_recovered and it.attempts > before then redis.call('HDEL', RECOVERED, it.id) end
      redis.call('ZREM', INFLIGHT, it.id)
    else lost[#lost + 1] = it.id end
  end
  return n_placed, n_failed
end
local _, n_retried = for_mine(retries, function(it) redis.call('ZADD', RETRY, now + it.delay, it.id) end)
local _, n_waits = for_mine(waits, function(it)
  redis.call('ZADD', WAITING, 0, member(it.origin, it.id))
  -- A lane that never failed is negative, the newest first; one that failed is due at a time.
  if not redis.call('ZSCORE', LANES, it.origin) then
    set_lane(it.delay < 0 and -now or due_at(now + it.delay), it.origin)
  end
end)
local n_dead = for_mine(deaths, function(it) redis.call('ZADD', DEAD, now, it.id) end)

for i = 1, #delivered, 500 do
  local to = math.min(i + 499, #delivered)
  if redis.call('ZREM', INFLIGHT, unpack(delivered, i, to)) < to - i + 1 then
    redis.call('ZREM', RETRY, unpack(delivered, i, to))
    redis.call('ZREM', DEAD, unpack(delivered, i, to))
    for j = i, to do
      if redis.call('ZREM', WAITING, member(origin_of[j], delivered[j])) > 0 and waiting_can_be_seen() then close_if_empty(origin_of[j]) end
    end
  end
end
all('HDEL', MESSAGES, delivered)
if redis.call('HLEN', HISTORY) > 0 then all('HDEL', HISTORY, delivered) end
if any_recovered then all('HDEL', RECOVERED, delivered) end

for _, change in ipairs(changes) do
  local due = tonumber(redis.call('ZSCORE', LANES, change.origin) or nil)
  if due then
    if change.what == 'o' then
      set_lane(0, change.origin)
      redis.call('HDEL', FAILURES, change.origin)
    elseif change.what == 'f' then
      if is_probed(due) then set_lane(due_at(now), change.origin) end
    elseif change.what == 'd' then
      set_lane(due_at(now + change.delay), change.origin)
    else
      -- Only the failure that is news counts: a late one, begun before another agent closed the lane, does not.
      local known = count_of(redis.call('HGET', FAILURES, change.origin) or '0')
      if change.failures > known then
        set_lane(due_at(now + change.delay), change.origin)
        redis.call('HSET', FAILURES, change.origin, string.format('%d %s ', change.failures, change.how) .. change.why)
      end
    end
  end
end
-- For who watches: deliveries, attempts that failed and deaths so far, of all agents.
if #delivered + n_retried + n_waits + n_dead > 0 then
  local so_far = {string.match(redis.call('HGET', CALLS, 'counts') or '', '^(%d+) (%d+) (%d+)$')}
  local function plus(n, more) n = tonumber(n or 0) return (n < HIGHEST and n or 0) + more end
  redis.call('HSET', CALLS, 'counts', string.format('%.0f %.0f %.0f',
    plus(so_far[1], #delivered), plus(so_far[2], n_retried + n_waits), plus(so_far[3], n_dead)))
end
if redis.call('ZSCORE', AGENTS, me) then
  redis.call('HSET', CALLS, 's' .. me, #lost > 0 and call .. ' ' .. table.concat(lost, ' ') or call)
end
return {'ok', lost}
