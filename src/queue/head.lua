-- Stands before every move. A move reads and checks all it will touch, then makes
-- one write that even a full Redis allows (`open_for_writing`), then adds to the
-- new place, then removes from the old: an error in mid-script is not rolled
-- back, so nothing may fail after the first write.
local K, ID, MESSAGES, INFLIGHT, WAITING, LANES, FAILURES, RETRY, DEAD, HISTORY, RECOVERED, AGENTS, CALLS = unpack(KEYS)
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

-- Raises WRONGTYPE while nothing has been written yet.
local function check_types()
  redis.call('LLEN', K)
  redis.call('GET', ID)
  for _, key in ipairs({MESSAGES, FAILURES, HISTORY, RECOVERED, CALLS}) do redis.call('HLEN', key) end
  for _, key in ipairs({INFLIGHT, WAITING, LANES, RETRY, DEAD, AGENTS}) do redis.call('ZCARD', key) end
end

-- At maxmemory a first write of ZADD or HSET is refused, but HDEL is not, and opens the rest.
local function open_for_writing() redis.call('HDEL', MESSAGES, '') end

-- `unpack` of 8,000 values is an error on Redis 7 and a crash before; an even step keeps pairs together.
local function in_chunks(items, call)
  for i = 1, #items, 500 do call(unpack(items, i, math.min(i + 499, #items))) end
end
local function all(command, key, items)
  in_chunks(items, function(...) redis.call(command, key, ...) end)
end

-- Ids and agents' numbers come from one counter that never goes back, not even
-- when Redis lost data: it is at least the time in microseconds, and at least the
-- highest number that the agent has seen, whatever the clock of a new master says.
local function next_numbers(n, seen)
  local last = math.max(tonumber(redis.call('GET', ID) or '0'), now_us, seen)
  redis.call('SET', ID, string.format('%.0f', last + n))
  return last
end
local function sixteen(number) return string.format('%016.0f', tonumber(number)) end

-- Agents that others took for dead, the newest last, so many at most: one that wakes after its lease asks
-- for itself when it joins again. All that it held was known here, and is others' now.
local MOST_RECOVERED = 1000
local function was_recovered(agent)
  local numbers = redis.call('HGET', CALLS, 'recovered')
  return numbers and string.find(numbers, agent, 1, true)
end
local function note_recovered(agent)
  if was_recovered(agent) then return end
  local numbers = (redis.call('HGET', CALLS, 'recovered') or '') .. agent .. ' '
  redis.call('HSET', CALLS, 'recovered', string.sub(numbers, -17 * MOST_RECOVERED))
end

local function member(origin, id) return origin .. '\n' .. id end
-- The lowest ids that wait for a lane; ':' is the character after '9'.
local function waiting_of(origin, from, n)
  return redis.call('ZRANGEBYLEX', WAITING, '[' .. origin .. '\n', '[' .. origin .. '\n:', 'LIMIT', from, n)
end
local function newest_waiting_of(origin, n)
  return redis.call('ZREVRANGEBYLEX', WAITING, '[' .. origin .. '\n:', '[' .. origin .. '\n', 'LIMIT', 0, n)
end
-- When a lane may be tried: an odd time says that it is left alone because it is being
-- probed, an even one that it backs off. Never failed is negative, open is 0.
local function probed_until(ms) return ms + 1 - ms % 2 end
local function due_at(ms) return ms - ms % 2 end
local function is_probed(due) return due > now and due % 2 == 1 end
local function close_if_empty(origin)
  if #waiting_of(origin, 0, 1) == 0 then
    redis.call('ZREM', LANES, origin)
    redis.call('HDEL', FAILURES, origin)
  end
end

-- failures of a lane: how many in a row, s if the last one was slow (else f), the last error.
local function fails_slowly(record) return record and string.match(record, '^%d+ s ') end

-- history: attempts, failures of its own, its first failure (or, not attempted yet, when it was first put off; ms), last error.
local function first_put_off(history) return history and tonumber(string.match(history, '^%d+ %d+ (%d+) ')) end
local function put_off(id, old, attempts, own, why)
  local first = first_put_off(old)
  if not first or attempts + 0 > 0 and tonumber(string.match(old, '^%d+')) == 0 then first = now end
  redis.call('HSET', HISTORY, id, string.format('%d %d %.0f ', attempts, own, first) .. why)
end
